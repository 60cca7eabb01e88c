"""A run that is only tried."""

import json
import subprocess

import pytest

from herl.estimate import _batches, _part, _validations
from tests.configuration import composed
from tests.integration.runs import HERL, environment

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_dry_run_shows_prompts_and_estimates_and_writes_nothing_but_its_report(tmp_path):
    done = subprocess.run(
        [*HERL, "fit", "dry_run=true", "rollout.attempt.max_new_tokens=32", f"hydra.run.dir={tmp_path}/run"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".hydra", "dry_run.json"]
    report = json.loads((tmp_path / "run" / "dry_run.json").read_text())
    assert report["prompts"] == {"train": 288, "heldout": 72}
    assert report["prompt"].startswith("<|im_start|>user\n")
    assert "The draft misses:" in report["revision_prompt"]
    assert 50 < report["batches"] < 65  # 8 192 answers, 8 and a revision to each of 16 prompts
    assert report["answers"] >= 8192
    assert report["validations"] == 2 + report["batches"] // 6
    assert {"sample", "revise", "update", "validate", "total"} <= set(report["run_seconds"])
    assert report["run_seconds"]["total"] == pytest.approx(
        sum(spent for name, spent in report["run_seconds"].items() if name != "total"), abs=0.5
    )
    assert report["longest_update"]["tokens"] == 512 - 32 + 8 * 32
    assert report["memory_gib"]["memory_gib"] > 0.1
    assert "The draft misses:" in done.stdout
    assert f"{report['batches']} batches" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "batches", "validations"),
    [
        ((), 57, 9),
        (("callbacks.answer_budget.answers=null",), 180, 30),
        (("callbacks.answer_budget.answers=null", "trainer.max_steps=30"), 15, 2),
        (("experiment=none",), 18, 1),
        (("experiment=none", "trainer.max_epochs=3", "trainer.val_check_interval=0.5"), 54, 6),
        (("experiment=none", "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2"), 72, 2),
    ],
)
def test_the_length_of_a_run_is_that_of_the_limit_it_meets_first(overrides, batches, validations):
    config = composed("fit", *overrides)
    assert _batches(config, 18, 144.0) == batches
    assert _validations(config, batches, 18) == validations


def test_limits_are_batches_or_shares_of_them():
    assert [_part(limit, 18) for limit in (None, 5, 50, 0.5, 1.0)] == [18, 5, 18, 9, 18]
