"""Hindsight for a part of the run, or for groups that do badly."""

from functools import partial

import pytest
import torch

from herl.callbacks import AnswerBudget, HindsightGate
from herl.callbacks.hindsight_gate import BelowLevel
from herl.errors import ConfigError
from herl.hindsight.revision import RevisionBuilder
from herl.testing import check_hindsight_builder, make_judged, make_task
from tests.support.training import TASKS, fit, module_of

STILL = partial(torch.optim.SGD, lr=0.0)


def revised(tmp_path, gate, answers, callbacks=(), **trainer):
    """Ids of the tasks that were revised, batch by batch."""
    module = module_of(answers, hindsight=RevisionBuilder(), optimizer=STILL)
    seen = []

    class Look(AnswerBudget):
        def on_train_batch_end(self, trainer, module, *rest):
            super().on_train_batch_end(trainer, module, *rest)
            seen.append({group.task.id for group in module.collection.groups if group.revisions})

    fit(module, tmp_path, callbacks=[*callbacks, gate, Look(40)], **trainer)
    assert isinstance(module.stages.hindsight, RevisionBuilder), "what was in place comes back"
    return seen


WORSE, BETTER = ["It eats fish.", "no", "no", "no"], ["It eats fish by the river.", "fish", "no", "no"]


def test_the_builder_keeps_the_contract_of_the_one_that_it_asks():
    check_hindsight_builder(BelowLevel(RevisionBuilder(), 1.0))
    task = make_task()
    group = [make_judged(0.6, met={"fish": True, "river": False}), make_judged(None, id="group/1")]
    assert BelowLevel(RevisionBuilder(), 0.6).build(task, group) == []
    assert len(BelowLevel(RevisionBuilder(), 0.7).build(task, group)) == 1
    assert BelowLevel(RevisionBuilder(), 0.7).build(task, [make_judged(None)]) == []


def test_there_is_none_after_its_share_of_the_run(tmp_path):
    answers = {task.id: WORSE for task in TASKS}
    seen = revised(tmp_path, HindsightGate(until=0.5), answers, max_epochs=-1)
    # 2 x (4 + 1) answers a batch, of a budget of 40: over half of it after two batches
    assert [bool(batch) for batch in seen] == [True, True, False, False, False][: len(seen)]
    assert len(seen) > 3


def test_groups_at_or_above_the_median_are_left_alone(tmp_path):
    first, second = TASKS
    answers = {first.id: WORSE, second.id: BETTER}
    gate = HindsightGate(below_median=True)
    seen = revised(tmp_path, gate, answers, max_epochs=2)
    assert first.id in seen[0], "nothing is known in the first batch"
    assert seen[1] == {first.id}
    other = HindsightGate(below_median=True)
    other.load_state_dict(gate.state_dict())
    assert other.best == gate.best
    assert len(gate.best) == 4


@pytest.mark.parametrize("wrong", [{"until": 0.0}, {"until": 1.1}, {"window": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"callbacks.hindsight_gate"):
        HindsightGate(**wrong)
