"""Skipping prompts by their difficulty: which, how often, over ranks and a resume, and nothing by default."""

from dataclasses import replace

import lightning as L
import pytest
import torch

from herl.callbacks import Checkpoints
from herl.errors import ConfigError
from herl.hindsight import NoHindsight
from herl.metrics.collection import collection_metrics
from herl.rollout.difficulty import Difficulty
from herl.rollout.stages import RolloutPlan
from herl.testing import make_task
from tests.support.training import KeepSteps, fit, module_of, weights

TASKS = [make_task(id=f"t{i}", request=f"Describe animal {i}.") for i in range(12)]
GOOD, BAD = "It eats fish and lives in a river.", "It is brown."
SCRIPT = {t.id: [[GOOD, GOOD], [GOOD, BAD], [BAD, BAD]][i % 3] for i, t in enumerate(TASKS)}
PLAN = RolloutPlan(attempts_per_prompt=2, skip_above=1.0, skip_below=0.0, skip_chance=0.25)
KEY = (0, 3, 1)


def known(rewards):
    found = Difficulty()
    found.rewards = rewards
    return found


def test_solved_and_hopeless_prompts_are_skipped_and_unknown_ones_are_not():
    rewards = {"t0": 1.0, "t1": 0.5, "t2": 0.0, "t3": 0.9}
    kept, skipped = known(rewards).chosen(TASKS[:5], KEY, above=0.9, below=0.0, chance=1e-9)
    assert [task.id for task in kept] == ["t1", "t4"]
    assert skipped == {"solved": 2, "hopeless": 1}
    kept, skipped = known(rewards).chosen(TASKS[:5], KEY, above=None, below=0.5, chance=1e-9)
    assert ([task.id for task in kept], skipped) == (["t0", "t3", "t4"], {"hopeless": 2})


def test_a_share_of_them_comes_back_and_which_is_a_hash_of_the_batch():
    found = known({task.id: 1.0 for task in TASKS})
    draws = [found.chosen(TASKS, (0, epoch, 0), above=1.0, below=None, chance=0.3) for epoch in range(300)]
    share = sum(len(kept) for kept, _ in draws) / (300 * len(TASKS))
    assert share == pytest.approx(0.3, abs=0.03)
    again = found.chosen(TASKS[::-1], (0, 7, 0), above=1.0, below=None, chance=0.3)
    assert {task.id for task in again[0]} == {task.id for task in draws[7][0]}, "whatever the order"
    assert found.chosen(TASKS, KEY, above=1.0, below=None, chance=1.0)[0] == TASKS


class DieAt(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 3:
            raise RuntimeError("killed")


def run(tmp_path, *callbacks, plan=PLAN, resume=None):
    keep = KeepSteps()
    module = module_of(SCRIPT, rollout=plan, hindsight=NoHindsight())
    keeps = any(isinstance(one, Checkpoints) for one in callbacks)
    fit(module, tmp_path, TASKS, [keep, *callbacks], resume, max_epochs=4, enable_checkpointing=keeps)
    return module, keep.steps


def asked(step):
    return [group.task.id for group in step.collection.groups]


def test_a_run_skips_what_it_knows_and_a_resumed_run_skips_the_same(tmp_path):
    module, steps = run(tmp_path)
    assert [len(asked(step)) for step in steps[:6]] == [2] * 6, "nothing is known in the first epoch"
    later = [name for step in steps[6:] for name in asked(step)]
    mixed = {task.id for i, task in enumerate(TASKS) if i % 3 == 1}
    assert all(later.count(name) == 3 for name in mixed)
    assert 0 < len(later) - 3 * len(mixed) < 3 * (len(TASKS) - len(mixed)) / 2
    for step in steps:
        curves = collection_metrics(step.collection)
        assert curves["difficulty/solved"] + curves["difficulty/hopeless"] == 2 - len(asked(step))
    first = KeepSteps()
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, first, DieAt(), Checkpoints(str(tmp_path / "c"), every_n_batches=1))
    again, rest = run(tmp_path, resume=str(tmp_path / "c" / "last.ckpt"))
    names = [asked(step) for step in steps]
    assert [asked(step) for step in rest] == names[-len(rest) :]
    assert 6 <= len(rest) < 18
    assert again.stages.difficulty.rewards == module.stages.difficulty.rewards
    assert torch.equal(weights(again), weights(module))


def test_nothing_is_skipped_or_remembered_by_default(tmp_path):
    module, steps = run(tmp_path, plan=RolloutPlan(attempts_per_prompt=2))
    assert all(len(asked(step)) == 2 for step in steps)
    assert module.stages.difficulty.rewards == {}
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)
    assert "difficulty" not in checkpoint["herl"]
    assert not any(name.startswith("difficulty") for name in collection_metrics(steps[0].collection))


def test_a_refill_replaces_what_was_skipped(tmp_path):
    _, steps = run(tmp_path, plan=replace(PLAN, refill=1))
    replaced = [step for step in steps if any(step.collection.skipped.values())]
    assert any(step.collection.refilled for step in replaced)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"skip_above": 0.5, "skip_below": 0.5}, "rollout.skip_below: expected less than skip_above = 0.5"),
        ({"skip_chance": 0.0}, r"rollout.skip_chance: expected a share in \(0, 1\], .*got 0.0"),
        ({"skip_chance": 1.5}, "rollout.skip_chance: expected a share in"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        RolloutPlan(**wrong)
