"""Criteria count by how much the answers differ on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean

from herl.advantages.emphasis import Emphasis
from herl.types import Group


class Contrast(Emphasis):
    """Multiplies the size of each weight by the variance of the verdicts, after POW3R (arXiv:2605.20164).

    Criteria that all answers fulfill, or none, teach nothing now. The weights of the others are raised so
    that each category keeps the sum of its weights; criteria without a category form one together. Members
    whose verdict abstained are left out of a criterion's variance. The variance is that of all members: a
    criterion that a revision alone fulfills counts, too.

    The paper's abstract names the principle: the contrast between rollouts shifts weights, human weights
    and the balance of categories are kept. The formula is ours. With `advantages=by_criterion`, which
    divides by the standard deviation, one factor of it remains.
    """

    def weights(self, group: Group, seed: int) -> Mapping[str, float]:
        """Returns the weights; all are 0 if the members agree on every criterion. `seed` is not used.

        The members disagree on one criterion, which takes all the weight of its category.

        >>> from herl.testing import make_group, make_judged
        >>> fish = make_judged(0.6, met={"fish": True, "river": False})
        >>> both = make_judged(1.0, met={"fish": True, "river": True})
        >>> Contrast().weights(make_group(fish, both), seed=0)
        {'fish': 0.0, 'river': 5.0}
        """
        rubric = group.task.rubric
        good = [rubric.goodness(member.judged.judgement.verdicts) for member in group.members]
        found = {}
        before: defaultdict[str, float] = defaultdict(float)  # by category
        after: defaultdict[str, float] = defaultdict(float)
        for criterion in rubric.criteria:
            values = [member[criterion.id] for member in good if criterion.id in member]
            mean = fmean(values) if values else 0.0
            variance = fmean((value - mean) ** 2 for value in values) if values else 0.0
            found[criterion.id] = abs(criterion.weight) * variance
            before[criterion.category] += abs(criterion.weight)
            after[criterion.category] += found[criterion.id]
        return {
            criterion.id: found[criterion.id]
            * before[criterion.category]
            / (after[criterion.category] or 1.0)
            for criterion in rubric.criteria
        }
