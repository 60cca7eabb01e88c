"""End to end: the held-out reward rises by more than with any broken loss, and episodes learn to call their tool."""

import json
import subprocess
import sys

import pytest

from tests.support.runs import curves

ANSWERS = 2304  # two fifths of the default budget: about a minute
RISE = 0.12  # a correct loss: 0.21. With a flipped sign, zero advantages or a mask off by one: none above 0
TOKENS = 40960  # a third of the default budget: half a minute
RISE_OF_EPISODES = 0.2  # a correct loss: 0.5


def fit(folder, *overrides):
    command = [sys.executable, "-m", "herl", "fit", *overrides, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_the_heldout_reward_rises(tmp_path):
    summary = fit(tmp_path, "experiment=embedded", f"callbacks.answer_budget.answers={ANSWERS}")
    assert summary["heldout_reward_after"] - summary["heldout_reward_before"] > RISE
    assert summary["revisions_sampled"] > 0


@pytest.mark.slow
def test_episodes_learn_to_look_up_products_that_training_never_named(tmp_path):
    summary = fit(tmp_path, "experiment=lookup", f"callbacks.answer_budget.tokens={TOKENS}")
    assert summary["heldout_reward_after"] - summary["heldout_reward_before"] > RISE_OF_EPISODES
    assert summary["revisions_sampled"] > 0
    for criterion in ("lookup", "value"):
        before, *_, after = curves(tmp_path)[f"heldout_criterion/{criterion}"]
        assert after - before > RISE_OF_EPISODES
