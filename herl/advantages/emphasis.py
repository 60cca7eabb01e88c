"""Other weights for the criteria while answers are compared.

An `Emphasis` decides how much each criterion counts in a group. Only the advantages see it: the members'
judged rewards, by which selection, replay, curves and checkpoints go, stay what they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from herl.advantages import Advantages, check_takes_groups, ones, spares_new
from herl.errors import ConfigError
from herl.seeds import derive_seed
from herl.types import Group, Member, Rubric


class Emphasis(ABC):
    """Decides how much each criterion counts when the answers of a group are compared."""

    needs_verdicts = True

    @abstractmethod
    def weights(self, group: Group, seed: int) -> Mapping[str, float]:
        """Returns weights of at least 0, by criterion id. A criterion with 0 or without a weight does not
        count.

        Args:
            group: The group, with its members.
            seed: All randomness is a hash of it; another one for each prompt and batch.
        """


class EmphasizedAdvantages:
    """Shows groups with other weights and rewards to the advantages it is made of."""

    needs_verdicts = True
    adds_up = True

    def __init__(self, advantages: Advantages, emphasis: Emphasis) -> None:
        self.advantages = advantages
        self.emphasis = emphasis
        self.spare_new = spares_new(advantages)

    def __call__(self, groups: Sequence[Group], seed: int) -> list[list[float]]:
        """Returns one advantage for each member of each group."""
        seeds = [derive_seed(seed, group.task.id, "emphasis") for group in groups]
        weights = [self.emphasis.weights(group, own) for group, own in zip(groups, seeds, strict=True)]
        return self.advantages([reweighted(*pair) for pair in zip(groups, weights, strict=True)], seed)


def emphasized(advantages: Advantages, emphasis: Emphasis | None = None) -> Advantages:
    """Returns advantages under an emphasis; unchanged without one.

    Args:
        advantages: Compares the answers.
        emphasis: How much each criterion counts; None for its weight in the rubric.

    Raises:
        ConfigError: these advantages compare nothing, or take no groups.
    """
    check_takes_groups(advantages)
    if emphasis is None:
        return advantages
    if getattr(advantages, "func", advantages) is ones:
        raise ConfigError(
            "emphasis: expected advantages that compare answers, got advantages=ones: use emphasis=none"
        )
    return EmphasizedAdvantages(advantages, emphasis)


def reweighted(group: Group, weights: Mapping[str, float]) -> Group:
    """Returns the group with a rubric of these weights, and members with the rewards that follow from them.

    A reward is the weighted mean of how well each criterion is fulfilled, in [0, 1], whatever the judge's
    aggregation is (`gated` and `all_or_nothing` are refused with an emphasis). Abstentions leave out
    their criterion. A member without any verdict that counts gets the mean reward of the others, so that it
    is neither better nor worse. Bonuses stay.

    >>> from herl.testing import make_group, make_judged
    >>> fish = make_judged(0.6, met={"fish": True, "river": False})
    >>> both = make_judged(1.0, met={"fish": True, "river": True})
    >>> group = reweighted(make_group(fish, both), {"fish": 1.0, "river": 3.0})
    >>> [member.reward for member in group.members]
    [0.25, 1.0]
    """
    rubric = Rubric(
        criteria=tuple(
            replace(criterion, weight=weights.get(criterion.id, 0.0))
            for criterion in group.task.rubric.criteria
        )
    )
    rewards = [_reward(rubric, member) for member in group.members]
    known = [reward for reward in rewards if reward is not None]
    middle = fmean(known) if known else 0.0
    members = [
        replace(member, reward=middle if reward is None else reward)
        for member, reward in zip(group.members, rewards, strict=True)
    ]
    return replace(group, task=replace(group.task, rubric=rubric), members=tuple(members))


def _reward(rubric: Rubric, member: Member) -> float | None:
    good = rubric.goodness(member.judged.judgement.verdicts)
    weights = {criterion.id: criterion.weight for criterion in rubric.criteria if criterion.id in good}
    whole = sum(weights.values())
    return sum(weight * good[name] for name, weight in weights.items()) / whole if whole else None
