"""A share of the criteria that only gold judges see."""

import pytest

from herl.data import RubricDataModule
from herl.data.hidden import PartlyHidden, WholeTasks, hide
from herl.errors import ConfigError
from herl.seeds import derive_seed
from herl.testing import make_task

WEIGHTS = {"fish": 3.0, "river": 2.0, "brown": 2.0, "thanks": 1.0, "zoo": -4.0}
TASKS = [make_task(WEIGHTS, id=f"t{number}", request=f"Topic {number}?") for number in range(200)]


def ids(criteria):
    return [one.id for one in criteria]


def test_a_criterion_is_hidden_if_the_hash_of_seed_task_and_criterion_is_below_the_share():
    for task in TASKS[:50]:
        expected = []
        for name in WEIGHTS:
            if derive_seed(3, task.id, name, "hidden") / 2**63 < 0.2:
                expected.append(name)
        found = hide(task, 0.2, seed=3)
        assert ids(found.hidden) == expected
        assert ids(found.rubric.criteria) == [name for name in WEIGHTS if name not in expected]


def test_about_the_share_is_hidden_and_gold_judges_see_all():
    found = PartlyHidden(TASKS, 0.2, seed=0)
    assert sum(len(task.hidden) for task in found) / (len(TASKS) * len(WEIGHTS)) == pytest.approx(
        0.2, abs=0.03
    )
    assert len({tuple(ids(task.hidden)) for task in found}) > 5, "not the same ones everywhere"
    for task, before in zip(WholeTasks(found), TASKS, strict=True):
        assert {one.id: one for one in task.rubric.criteria} == {
            one.id: one for one in before.rubric.criteria
        }
        assert task.hidden == ()


def test_the_choice_depends_on_the_seed_and_on_nothing_else():
    whole, part = PartlyHidden(TASKS, 0.3, seed=0), PartlyHidden(TASKS[::-1], 0.3, seed=0)
    assert list(whole) == list(part)[::-1] == list(PartlyHidden(TASKS, 0.3, seed=0)[:])
    assert list(whole) != list(PartlyHidden(TASKS, 0.3, seed=1))


@pytest.mark.parametrize("weights", [{"fish": 1.0}, {"fish": 1.0, "zoo": -1.0, "spam": -2.0}, {"zoo": -1.0}])
def test_a_rubric_keeps_what_can_earn_a_reward(weights):
    for number in range(30):
        task = hide(make_task(weights, id=f"t{number}"), 0.99, seed=0)
        assert [one for one in task.rubric.criteria if one.weight > 0] or max(weights.values()) < 0
        assert task.rubric.criteria


def test_of_all_that_would_be_hidden_the_largest_hash_stays():
    task = hide(TASKS[0], 0.999, seed=0)
    earning = [name for name, weight in WEIGHTS.items() if weight > 0]
    assert ids(task.rubric.criteria) == [max(earning, key=lambda name: derive_seed(0, "t0", name, "hidden"))]


def test_training_and_heldout_prompts_hide_alike_and_a_resumed_run_must_too():
    off = RubricDataModule(TASKS, TASKS[:20], seed=5)
    on = RubricDataModule(TASKS, TASKS[:20], seed=5, hidden_criteria=0.2)
    assert off.train is TASKS
    assert list(on.heldout) == [hide(task, 0.2, seed=5) for task in TASKS[:20]] == list(on.train)[:20]
    assert on.state_dict()["train"] != off.state_dict()["train"]
    split = RubricDataModule(TASKS, heldout_share=0.1, hidden_criteria=0.2)
    assert [task.id for task in split.heldout] == [
        task.id for task in RubricDataModule(TASKS, heldout_share=0.1).heldout
    ]
    with pytest.raises(ConfigError, match=r"data.hidden_criteria: expected a share in \[0, 1\), got 1.0"):
        RubricDataModule(TASKS, hidden_criteria=1.0)
