"""End to end on the embedded task: the held-out reward rises by more than with any broken loss."""

import json
import subprocess
import sys

import pytest

ANSWERS = 2304  # two fifths of the default budget: about a minute
RISE = 0.12  # a correct loss: 0.21. With a flipped sign, zero advantages or a mask off by one: none above 0


@pytest.mark.slow
def test_the_heldout_reward_rises(tmp_path):
    command = [
        sys.executable, "-m", "herl", "fit", "experiment=embedded", f"callbacks.answer_budget.answers={ANSWERS}", f"hydra.run.dir={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["heldout_reward_after"] - summary["heldout_reward_before"] > RISE
    assert summary["revisions_sampled"] > 0
