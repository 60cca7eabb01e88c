"""Which attempts of a group get revised. Pure functions, chosen by `hindsight.candidates`.

Each takes the task and the attempts that could be judged, and returns some of them. Ties are broken
by more fulfilled criteria, then by order of sampling, so the choice does not depend on anything else.
"""

from __future__ import annotations

from collections.abc import Sequence

from herl.types import Judged, Task

TIE = 1e-6
"""Rewards closer than this are tied (reference code)."""


def _ranked(task: Task, group: Sequence[Judged]) -> list[Judged]:
    return sorted(group, key=lambda judged: (-judged.reward, -judged.fulfilled_count(task)))


def tied_best(task: Task, group: Sequence[Judged], *, max_candidates: int = 16) -> list[Judged]:
    """Returns those tied for the best reward, most fulfilled criteria first (reference)."""
    best = max(one.reward for one in group)
    tied = [judged for judged in group if abs(judged.reward - best) < TIE]
    return sorted(tied, key=lambda judged: -judged.fulfilled_count(task))[:max_candidates]


def top_k(task: Task, group: Sequence[Judged], *, k: int = 1) -> list[Judged]:
    """Returns the k best. With k = 1 the one best attempt."""
    return _ranked(task, group)[:k]


def bottom_k(task: Task, group: Sequence[Judged], *, k: int = 1) -> list[Judged]:
    """Returns the k worst, the worst first."""
    return _ranked(task, group)[::-1][:k]


def all_imperfect(task: Task, group: Sequence[Judged], *, perfect: float = 1.0) -> list[Judged]:
    """Returns every attempt with a reward below `perfect`, best first."""
    return [judged for judged in _ranked(task, group) if judged.reward < perfect - TIE]
