"""What the length of an answer adds to its reward while answers are compared.

Like an emphasis, only the advantages see it: selection, replay, curves and checkpoints go on with the judge's
rewards. Lengths are those of everything that was sampled, thinking included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from herl.advantages import Advantages, ones, spares_new
from herl.advantages.by_criterion import ByCriterion
from herl.errors import ConfigError, check_above
from herl.types import Group, Member


class LengthPenalty(ABC):
    """Decides what the lengths of a group's answers add to their rewards."""

    @abstractmethod
    def added(self, members: Sequence[Member]) -> list[float]:
        """Returns what is added to each member's reward."""


class Overlong(LengthPenalty):
    """DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13), times a weight.

    With L tokens, L_max = max_tokens and L_cache = buffer x L_max it is

        0 if L <= L_max - L_cache, else ((L_max - L_cache) - L) / L_cache, but at least -1

    Args:
        max_tokens: Tokens at which the whole weight is taken off; of an episode, those of all turns count.
        buffer: Share of them, in (0, 1], over which the penalty grows; 4096 of 20480 tokens in the paper.
        weight: Reward taken off at most.

    >>> from herl.testing import make_judged, make_rollout
    >>> answers = [make_judged(1.0, rollout=make_rollout(token_ids=[1] * n)) for n in (5, 6, 10, 12)]
    >>> Overlong(max_tokens=10, buffer=0.5).added([Member(judged=one, reward=1.0) for one in answers])
    [0.0, -0.2, -1.0, -1.0]
    """

    def __init__(self, max_tokens: int, buffer: float = 0.2, weight: float = 1.0) -> None:
        check_above("length_penalty", 0, max_tokens=max_tokens, weight=weight)
        if not 0.0 < buffer <= 1.0:
            raise ConfigError(f"length_penalty.buffer: expected a share in (0, 1], got {buffer}")
        self.max_tokens, self.buffer, self.weight = max_tokens, buffer, weight

    def added(self, members: Sequence[Member]) -> list[float]:
        """Returns a number from -weight to 0 for each member."""
        cache = self.buffer * self.max_tokens
        over = [_tokens(member) - (self.max_tokens - cache) for member in members]
        return [-self.weight * min(1.0, tokens / cache) if tokens > 0 else 0.0 for tokens in over]


class Shorter(LengthPenalty):
    """The length reward of Kimi k1.5 (arXiv:2501.12599, section 2.3.3), times a weight.

    Compares the lengths L of a group's answers: s = 0.5 - (L - L_min) / (L_max - L_min) for an answer that is
    good enough, and min(0, s) for others, so that a bad answer gains nothing by being short. It is 0 if all
    are equally long.

    Args:
        weight: Factor of the length reward, which is from -0.5 to 0.5.
        at_least: Reward from which an answer is good enough; 1 in the paper, for a correct one.

    >>> from herl.testing import make_judged, make_rollout
    >>> given = [(1, 2), (0, 2), (1, 6)]
    >>> answers = [make_judged(r, rollout=make_rollout(token_ids=[1] * n)) for r, n in given]
    >>> Shorter(weight=1.0).added([Member(judged=one, reward=one.reward) for one in answers])
    [0.5, 0.0, -0.5]
    """

    def __init__(self, weight: float = 0.1, at_least: float = 1.0) -> None:
        check_above("length_penalty", 0, weight=weight)
        self.weight, self.at_least = weight, at_least

    def added(self, members: Sequence[Member]) -> list[float]:
        """Returns a number from -weight / 2 to weight / 2 for each member."""
        lengths = [_tokens(member) for member in members]
        shortest, span = min(lengths, default=0), max(lengths, default=0) - min(lengths, default=0)
        if not span:
            return [0.0] * len(lengths)
        shares = [0.5 - (length - shortest) / span for length in lengths]
        return [
            self.weight * (share if member.reward >= self.at_least else min(0.0, share))
            for member, share in zip(members, shares, strict=True)
        ]


class PenalizedAdvantages:
    """Shows groups with the added rewards to the advantages it is made of."""

    def __init__(self, advantages: Advantages, penalty: LengthPenalty) -> None:
        self.advantages, self.penalty = advantages, penalty
        self.needs_verdicts = bool(getattr(advantages, "needs_verdicts", False))
        self.adds_up = bool(getattr(advantages, "adds_up", False))
        self.spare_new = spares_new(advantages)

    def __call__(self, groups: Sequence[Group], seed: int) -> list[list[float]]:
        """Returns one advantage for each member of each group.

        A group that carries no signal without the penalty has none with it: divided by its own deviation, a
        small penalty alone would count as much as any reward.
        """
        plain = self.advantages(groups, seed)
        shown = [
            self._penalized(group) if any(values) else group
            for group, values in zip(groups, plain, strict=True)
        ]
        return self.advantages(shown, seed)

    def _penalized(self, group: Group) -> Group:
        added = self.penalty.added(group.members)
        members = [
            replace(member, reward=member.reward + more)
            for member, more in zip(group.members, added, strict=True)
        ]
        return replace(group, members=tuple(members))


def penalized(advantages: Advantages, penalty: LengthPenalty | None = None) -> Advantages:
    """Returns advantages under a length penalty; unchanged without one.

    Args:
        advantages: Compares the rewards.
        penalty: What lengths add to rewards; None for nothing.

    Raises:
        ConfigError: these advantages do not compare rewards.
    """
    if penalty is None:
        return advantages
    if getattr(advantages, "func", advantages) is ones or isinstance(advantages, ByCriterion):
        raise ConfigError(
            "length_penalty: expected advantages that compare rewards, got advantages=ones or by_criterion: "
            "use advantages=group, or length_penalty=none"
        )
    return PenalizedAdvantages(advantages, penalty)


def _tokens(member: Member) -> int:
    return len(member.judged.rollout.token_ids)
