"""Hindsight for part of the run, or for groups that do badly."""

from functools import partial

import pytest
import torch

from herl.callbacks import AnswerBudget
from herl.errors import ConfigError
from herl.hindsight import NoHindsight
from herl.hindsight.gate import GatedHindsight, gated
from herl.hindsight.revision import RevisionBuilder
from herl.testing import check_hindsight_builder, make_judged, make_task
from tests.support.training import TASKS, KeepSteps, fit, module_of

STILL = partial(torch.optim.SGD, lr=0.0)


def revised(tmp_path, answers, gate, resume=None, **trainer):
    """Ids of the tasks that were revised, batch by batch, and the module."""
    module = module_of(answers, hindsight=RevisionBuilder(), hindsight_gate=gate, optimizer=STILL)
    kept = KeepSteps()
    trainer = fit(module, tmp_path, callbacks=[AnswerBudget(40), kept], resume=resume, **trainer)
    seen = [{group.task.id for group in step.collection.groups if group.revisions} for step in kept.steps]
    return seen, module, trainer


WORSE, BETTER = ["It eats fish.", "no", "no", "no"], ["It eats fish by the river.", "fish", "no", "no"]


def at_level(level):
    gate = GatedHindsight(RevisionBuilder(), below_median=True)
    gate.best.append(level)
    gate.begin_batch(0.0)
    return gate


def test_the_builder_keeps_the_contract_of_the_one_that_it_asks():
    check_hindsight_builder(at_level(1.0))
    check_hindsight_builder(GatedHindsight(RevisionBuilder()))
    task = make_task()
    group = [make_judged(0.6, met={"fish": True, "river": False}), make_judged(None, id="group/1")]
    assert at_level(0.6).build(task, group) == []
    assert len(at_level(0.7).build(task, group)) == 1
    assert at_level(0.7).build(task, [make_judged(None)]) == []


def test_the_gate_is_open_outside_of_training_batches():
    task, group = make_task(), [make_judged(0.6, met={"fish": True, "river": False})]
    gate = GatedHindsight(RevisionBuilder(), until=0.5)
    gate.begin_batch(0.5)
    assert gate.build(task, group) == []
    gate.end_batch([group, [make_judged(None)]])
    assert len(gate.build(task, group)) == 1
    assert list(gate.best) == [0.6], "a group that could not be judged says nothing"


def test_a_gate_that_never_closes_lets_everything_through_and_still_learns_the_level():
    gate, group = gated(RevisionBuilder()), [make_judged(0.6, met={"fish": True, "river": False})]
    gate.begin_batch(0.9)
    assert gate.build(make_task(), group) == RevisionBuilder().build(make_task(), group) != []
    gate.end_batch([group])
    resumed = gated(RevisionBuilder(), below_median=True)
    resumed.load_state_dict(gate.state_dict())
    resumed.begin_batch(0.9)
    assert resumed.build(make_task(), group) == [], "0.6 is not below the median, 0.6"


@pytest.mark.parametrize(
    ("rewards", "flat"),
    [
        ((0.4, 0.4, 0.4), True),
        ((0.4, 0.40009, 0.4), True),
        ((0.4, 0.4002), False),
        ((0.4,), True),
        ((0.4, None, 0.4), True),
        ((0.0, 0.6), False),
        ((None,), False),
    ],
)
def test_only_flat_groups_are_revised_in_training(rewards, flat):
    task, met = make_task(), {"fish": True, "river": False}
    group = [make_judged(reward, met=met, id=f"group/{i}") for i, reward in enumerate(rewards)]
    gate = gated(RevisionBuilder(), only_flat=True)
    expected = RevisionBuilder().build(task, group)
    assert gate.build(task, group) == expected, "it is open outside of training batches"
    gate.begin_batch(0.0)
    assert gate.build(task, group) == (expected if flat else [])
    gate.end_batch([group])
    assert gate.build(task, group) == expected


def test_flat_groups_above_the_median_are_left_alone_if_both_modes_are_on():
    met = {"fish": True, "river": False}
    gate = gated(RevisionBuilder(), only_flat=True, below_median=True)
    gate.begin_batch(0.0)
    gate.end_batch([[make_judged(0.5)]])
    gate.begin_batch(0.0)
    assert gate.build(make_task(), [make_judged(0.5, met=met)] * 2) == []
    assert len(gate.build(make_task(), [make_judged(0.4, met=met)] * 2)) == 1


def test_a_builder_that_never_revises_needs_no_gate():
    plain = NoHindsight()
    assert gated(plain, until=0.5) is plain


def test_there_is_none_after_its_share_of_the_run(tmp_path):
    answers = {task.id: WORSE for task in TASKS}
    seen, *_ = revised(tmp_path, answers, partial(gated, until=0.5), max_epochs=-1)
    # 2 x (4 + 1) answers a batch, of a budget of 40: over half of it after two batches
    assert [bool(batch) for batch in seen] == [True, True, False, False, False][: len(seen)]
    assert len(seen) > 3


def test_groups_at_or_above_the_median_are_left_alone(tmp_path):
    first, second = TASKS
    answers = {first.id: WORSE, second.id: BETTER}
    seen, module, _ = revised(tmp_path, answers, partial(gated, below_median=True), max_epochs=2)
    assert first.id in seen[0], "nothing is known in the first batch"
    assert seen[1] == {first.id}
    gate = module.stages.hindsight
    other = GatedHindsight(RevisionBuilder(), below_median=True)
    other.load_state_dict(gate.state_dict())
    assert other.best == gate.best
    assert len(gate.best) == 4


def test_a_resumed_run_goes_on_with_what_the_gate_knew(tmp_path):
    first, second = TASKS
    answers = {first.id: WORSE, second.id: BETTER}
    _, module, trainer = revised(tmp_path, answers, partial(gated, below_median=True), max_epochs=1)
    path = tmp_path / "first.ckpt"
    trainer.save_checkpoint(path)
    known = list(module.stages.hindsight.best)
    assert len(known) == 2
    seen, module, _ = revised(tmp_path, answers, partial(gated, below_median=True), resume=path, max_epochs=2)
    assert seen == [{first.id}], "without the first batch, both would be revised"
    assert list(module.stages.hindsight.best) == known * 2


@pytest.mark.parametrize("wrong", [{"until": 0.0}, {"until": 1.1}, {"window": 0}, {"tolerance": -1e-4}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"module.hindsight_gate"):
        gated(RevisionBuilder(), **wrong)
