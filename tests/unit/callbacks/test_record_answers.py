"""Recorded answers: those of validations, on request."""

import json
from types import SimpleNamespace

import pytest

from herl.callbacks import RecordAnswers
from herl.rollout.improve import Trajectory
from herl.testing import make_judged, make_task


@pytest.mark.parametrize("heldout", [False, True])
def test_the_plain_attempts_of_a_validation_are_recorded_if_wanted(tmp_path, heldout):
    recorder = RecordAnswers(str(tmp_path / "records"), max_answers=1, heldout=heldout)
    answers = make_judged(0.5, id="plain"), make_judged(0.7, id="revised", parent_id="plain")
    module = SimpleNamespace(counts={"answers_sampled": 1024})
    trainer = SimpleNamespace(is_global_zero=True)
    recorder.on_heldout(trainer, module, (Trajectory(task=make_task(), answers=answers),) * 2)
    if not heldout:
        assert not list(tmp_path.iterdir())
        return
    [file] = (tmp_path / "records").iterdir()
    assert file.name == "heldout-00001024.jsonl"
    assert [one["id"] for one in map(json.loads, file.read_text().splitlines())] == ["plain"] * 2
    assert recorder.written == 0, "they do not count as recorded answers of training"
