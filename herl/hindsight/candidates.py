"""Which attempts of a group get revised. Pure functions, chosen by `hindsight.candidates`.

Each takes the judged attempts (rewards are never None here) and returns some of them. Ties are broken
by more met criteria, then by order of sampling, so the choice does not depend on anything else.
"""

from __future__ import annotations

from collections.abc import Sequence

from herl.types import Judged

TIE = 1e-6
"""Rewards closer than this are tied (reference code)."""


def _reward(judged: Judged) -> float:
    assert judged.judgement.reward is not None
    return judged.judgement.reward


def _met(judged: Judged) -> int:
    return sum(verdict.met is True for verdict in judged.judgement.verdicts)


def _ranked(group: Sequence[Judged]) -> list[Judged]:
    return sorted(group, key=lambda judged: (-_reward(judged), -_met(judged)))


def tied_best(group: Sequence[Judged], *, max_candidates: int = 16) -> list[Judged]:
    """Returns those tied for the best reward, most met criteria first (reference)."""
    best = max(map(_reward, group))
    tied = [judged for judged in group if abs(_reward(judged) - best) < TIE]
    return sorted(tied, key=lambda judged: -_met(judged))[:max_candidates]


def top_k(group: Sequence[Judged], *, k: int = 1) -> list[Judged]:
    """Returns the k best. With k = 1 the one best attempt."""
    return _ranked(group)[:k]


def bottom_k(group: Sequence[Judged], *, k: int = 1) -> list[Judged]:
    """Returns the k worst, the worst first."""
    return _ranked(group)[::-1][:k]


def all_imperfect(group: Sequence[Judged], *, perfect: float = 1.0) -> list[Judged]:
    """Returns every attempt with a reward below `perfect`, best first."""
    return [judged for judged in _ranked(group) if _reward(judged) < perfect - TIE]
