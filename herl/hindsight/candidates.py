"""Which attempts of a group get revised. Pure functions, chosen by `hindsight.candidates`.

Each takes the task and the attempts that could be judged, and returns some of them. Ties are broken
by more fulfilled criteria, then by order of sampling, so the choice does not depend on anything else.
"""

from __future__ import annotations

from collections.abc import Sequence

from herl.types import Judged, Task
from herl.types.answer import TIE


def _ranked(task: Task, group: Sequence[Judged]) -> list[Judged]:
    return sorted(group, key=lambda judged: (-judged.reward, -judged.fulfilled_count(task)))


def tied_best(task: Task, group: Sequence[Judged], *, max_candidates: int = 16) -> list[Judged]:
    """Returns those tied for the best reward, most fulfilled criteria first (reference).

    >>> from herl.testing import make_judged, make_task
    >>> group = [make_judged(reward, id=f"a{i}") for i, reward in enumerate([0.6, 0.2, 0.6])]
    >>> [one.rollout.id for one in tied_best(make_task(), group)]
    ['a0', 'a2']
    """
    best = max(one.reward for one in group)
    tied = [judged for judged in group if abs(judged.reward - best) < TIE]
    return sorted(tied, key=lambda judged: -judged.fulfilled_count(task))[:max_candidates]


def top_k(task: Task, group: Sequence[Judged], *, k: int = 1) -> list[Judged]:
    """Returns the k best. With k = 1 the one best attempt.

    Of two attempts with the same reward, the one that fulfills more criteria comes first.

    >>> from herl.testing import make_judged, make_task
    >>> less = make_judged(0.6, id="less", met={"fish": True, "river": False})
    >>> more = make_judged(0.6, id="more", met={"fish": True, "river": True})
    >>> [one.rollout.id for one in top_k(make_task(), [less, more], k=1)]
    ['more']
    """
    return _ranked(task, group)[:k]


def bottom_k(task: Task, group: Sequence[Judged], *, k: int = 1) -> list[Judged]:
    """Returns the k worst, the worst first.

    >>> from herl.testing import make_judged, make_task
    >>> group = [make_judged(reward) for reward in [0.6, 0.2, 0.4]]
    >>> [one.reward for one in bottom_k(make_task(), group, k=2)]
    [0.2, 0.4]
    """
    return _ranked(task, group)[::-1][:k]


def all_imperfect(task: Task, group: Sequence[Judged], *, perfect: float = 1.0) -> list[Judged]:
    """Returns every attempt with a reward below `perfect`, best first.

    >>> from herl.testing import make_judged, make_task
    >>> group = [make_judged(reward) for reward in [0.2, 1.0, 0.6]]
    >>> [one.reward for one in all_imperfect(make_task(), group)]
    [0.6, 0.2]
    """
    return [judged for judged in _ranked(task, group) if judged.reward < perfect - TIE]
