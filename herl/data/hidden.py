"""Keeps a share of the criteria from the judge that trains and from hindsight; gold judges see all of them.

A policy that learns what a rubric is for also fulfills criteria that nothing rewards. One that learns to
please the judge fulfills only those that the judge sees. A criterion is hidden if the hash of (seed, task,
criterion) is below the share: neither the order of the rows, a resume nor the number of ranks changes it.
Training and held-out prompts are treated the same, so `train/reward` and `heldout/reward` are over visible
criteria, and runs with other seeds see others; the rewards of gold judges stay comparable.

A rubric always keeps a visible criterion with a positive weight, if it has one: of those that would all be
hidden, the one with the largest hash. A rubric with a single criterion therefore hides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from herl.data.view import TaskView
from herl.errors import ConfigError
from herl.seeds import derive_seed
from herl.types import Rubric, Task


class PartlyHidden(TaskView):
    """Tasks that hide some of their criteria (`Task.hidden`).

    Args:
        tasks: Tasks with all their criteria.
        share: Probability, in [0, 1), that a criterion is hidden.
        seed: Seed of the choice.

    Raises:
        ConfigError: the share is not one.
    """

    def __init__(self, tasks: Sequence[Task], share: float, seed: int) -> None:
        check_share(share)
        super().__init__(range(len(tasks)), tasks)
        self._tasks = tasks
        self._share = share
        self._seed = seed

    def _task(self, place: int) -> Task:
        return hide(self._tasks[place], self._share, self._seed)


def check_share(share: float) -> None:
    """Raises a ConfigError if this is no share in [0, 1)."""
    if not 0.0 <= share < 1.0:
        raise ConfigError(f"data.hidden_criteria: expected a share in [0, 1), got {share}")


class WholeTasks(TaskView):
    """Tasks with their hidden criteria, as gold judges see them.

    Args:
        tasks: Tasks that may hide criteria.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(range(len(tasks)), tasks)
        self._tasks = tasks

    def _task(self, place: int) -> Task:
        return self._tasks[place].whole


def hide(task: Task, share: float, seed: int) -> Task:
    """Returns a task that hides about this share of its criteria.

    Args:
        task: A task with all its criteria.
        share: Probability that a criterion is hidden.
        seed: Seed of the choice.
    """
    criteria = task.rubric.criteria
    drawn = {one.id: derive_seed(seed, task.id, one.id, "hidden") / 2**63 for one in criteria}  # in [0, 1)
    hidden = {name for name, place in drawn.items() if place < share}
    needed = [one.id for one in criteria if one.weight > 0] or list(drawn)
    if needed and hidden.issuperset(needed):
        hidden.remove(max(needed, key=lambda name: drawn[name]))
    if not hidden:
        return task
    return replace(
        task,
        rubric=Rubric(criteria=tuple(one for one in criteria if one.id not in hidden)),
        hidden=tuple(one for one in criteria if one.id in hidden),
    )
