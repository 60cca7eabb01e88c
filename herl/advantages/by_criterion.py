"""Advantages from the verdicts on each criterion instead of one reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

from herl.advantages import std
from herl.errors import check_above, check_at_least
from herl.types import Group


class ByCriterion:
    """Normalizes the verdicts on each criterion within its group, then adds them up (GDPO, arXiv:2601.05242).

    In one sum of points, a criterion that few answers fulfill is outweighed by those that many do, and
    answers that fulfill different criteria can earn the same. Here an answer's advantage is

        a = sum over criteria of |w| z / sum over criteria of |w|,  z = (v - mean(v)) / (std(v) + epsilon)

    over the standard deviation of all a in the batch. v is how well the answer fulfills the criterion, in
    [0, 1]: an undesirable one is fulfilled by avoiding it, and the size of a weight says how much it
    counts. Mean and unbiased standard deviation are over the members that were judged on the criterion; for
    a member whose verdict abstained, and where all agree, z is 0. Weights are those of the rubric:
    `aggregation` shapes the reward, which selection and curves go on to use, but not these advantages: so
    `gated` and `all_or_nothing` are refused with them.

    A bonus, minus the mean bonus of the group, is added to a without being normalized: 1 of it counts as one
    standard deviation of a criterion with all the weight. So a tiny bonus stays tiny, whatever else differs.
    Whether a group carries a signal is decided without it (`bonus.in_flat_groups`).

    Like those of `batch_std` in `group_advantages`, the groups are those of all ranks.

    Args:
        scale: `batch_std` divides by the unbiased standard deviation over the batch, without groups that
            carry no signal; `none` does not divide.
        spare_new: Whether a revision that fulfills a criterion that no attempt in its group does is compared
            only where it is at least as good as the mean attempt (`selection.joins=new` admits such
            revisions) and as the mean of all members that are compared on it. So it never gets a negative
            advantage, and attempts gain nothing by beating it.
        tolerance: Spread below which the verdicts on a criterion, or the values of a in a group, are equal.
        epsilon: Added to each standard deviation.
    """

    needs_verdicts = True
    adds_up = True

    def __init__(
        self,
        scale: Literal["batch_std", "none"] = "batch_std",
        spare_new: bool = True,
        tolerance: float = 1e-4,
        epsilon: float = 1e-6,
    ) -> None:
        check_at_least("advantages", 0, tolerance=tolerance)
        check_above("advantages", 0, epsilon=epsilon)
        self.scale = scale
        self.spare_new = spare_new
        self.tolerance = tolerance
        self.epsilon = epsilon

    def __call__(self, groups: Sequence[Group], seed: int = 0) -> list[list[float]]:
        """Returns one advantage for each member of each group; `seed` is not used.

        Each answer fulfills one of two criteria; that of the first weighs more.

        >>> from herl.testing import make_group, make_judged, make_task
        >>> fish = make_judged(0.6, met={"fish": True, "river": False})
        >>> river = make_judged(0.4, met={"fish": False, "river": True})
        >>> group = make_group(fish, river, task=make_task({"fish": 3.0, "river": 2.0}))
        >>> [[round(a, 3) for a in group] for group in ByCriterion(scale="none")([group])]
        [[0.141, -0.141]]
        """
        sums = [self._sums(group) for group in groups]
        if self.scale == "none":
            return sums
        pooled = [value for group in sums if any(group) for value in group]
        divisor = std(pooled) + self.epsilon
        return [[value / divisor for value in group] for group in sums]

    def _sums(self, group: Group) -> list[float]:
        """a for each member; exactly 0 for all of them if they are equal."""
        rubric = group.task.rubric
        total = math.fsum(abs(criterion.weight) for criterion in rubric.criteria) or 1.0
        spared = self._spared(group)
        good = self._compared(group, spared)
        mean = math.fsum(member.bonus for member in group.members) / max(1, len(group.members))
        terms = [[member.bonus - mean] for member in group.members]
        for place in spared:
            terms[place] = [max(0.0, *terms[place])]
        for criterion in rubric.criteria:
            judged = [place for place, values in enumerate(good) if criterion.id in values]
            normal = self._normalized([good[place][criterion.id] for place in judged])
            for place, value in zip(judged, normal, strict=True):
                terms[place].append(abs(criterion.weight) / total * value)
        sums = [math.fsum(values) for values in terms]
        if not sums or max(sums) - min(sums) < self.tolerance:
            return [0.0] * len(sums)
        return sums

    def _normalized(self, values: Sequence[float]) -> list[float]:
        if not values or max(values) - min(values) < self.tolerance:
            return [0.0] * len(values)
        mean, deviation = math.fsum(values) / len(values), std(values) + self.epsilon
        return [(value - mean) / deviation for value in values]

    def _spared(self, group: Group) -> list[int]:
        """Places of the members that get no negative advantage."""
        rubric, attempts = group.task.rubric, [one.judgement.verdicts for one in group.attempts]
        return [
            place
            for place, member in enumerate(group.members)
            if self.spare_new
            and member.origin != "policy"
            and rubric.fulfilled_first(member.judged.judgement.verdicts, attempts)
        ]

    def _compared(self, group: Group, spared: Sequence[int]) -> list[dict[str, float]]:
        """How well each member fulfills each criterion on which it is compared."""
        rubric = group.task.rubric
        good = [rubric.goodness(member.judged.judgement.verdicts) for member in group.members]

        def without_worse(usual: Mapping[str, float]) -> list[dict[str, float]]:
            return [
                {name: value for name, value in one.items() if place not in spared or value >= usual[name]}
                for place, one in enumerate(good)
            ]

        attempts = [rubric.goodness(attempt.judgement.verdicts) for attempt in group.attempts]
        good = without_worse(_means(good) | _means(attempts))
        while (left := without_worse(_means(good))) != good:  # each one left out raises the mean
            good = left
        return good


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name for one in values for name in one}
    return {name: fmean(one[name] for one in values if name in one) for name in names}
