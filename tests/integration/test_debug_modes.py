"""Each debug mode runs, and does what its file says."""

import json

import pytest

from herl.config.check import conf_dir
from tests.support.runs import SMALL, fit_here

FEW = [one for one in SMALL if not one.startswith("trainer.")]
MODES = {
    "one_batch": [],
    "overfit": ["trainer.max_epochs=2"],
    "profiler": ["trainer.limit_train_batches=1"],
}


@pytest.mark.parametrize("mode", sorted(path.stem for path in (conf_dir() / "debug").glob("*.yaml")))
def test_a_debug_mode_does_what_its_file_says(tmp_path, mode):
    if mode == "none":
        return
    curves = fit_here(tmp_path, f"debug={mode}", *MODES[mode], small=FEW)
    files = {path.name for path in tmp_path.iterdir()}
    assert len(curves["train/reward"]) == (2 if mode == "overfit" else 1)
    assert {"fit-profile.txt", "validate-profile.txt"} <= files or mode != "profiler"
    if mode == "overfit":
        (answers,) = (tmp_path / "records").glob("*.jsonl")
        found = [json.loads(line) for line in answers.read_text().splitlines()]
        assert len({answer["task_id"] for answer in found}) == 7  # one batch, twice
