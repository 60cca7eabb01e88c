"""Verdicts and weights -> one reward. Pure functions, chosen by `aggregation=`.

A criterion whose verdict abstained leaves both the numerator and the denominator. Each function returns
None if no criterion is left. A criterion with a negative weight costs its weight when the bad thing
happens and earns nothing when it does not.

| published definition                                               | `aggregation=`  |
|--------------------------------------------------------------------|-----------------|
| HealthBench, arXiv:2505.08775, openai/simple-evals                  | `healthbench`   |
| Rubrics as Rewards, arXiv:2507.17746, explicit aggregation          | `rar_explicit`  |
| HeRL, arXiv:2603.20046, medicine in the public code                 | `herl_medicine` |

`weighted`, `absolute`, `all_or_nothing` and `gated` are our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from herl.types import Criterion, Rubric, Verdict

CATEGORY_WEIGHTS = {"essential": 1.0, "important": 0.7, "optional": 0.3, "pitfall": 0.9}
"""Category weights from Rubrics as Rewards (arXiv:2507.17746)."""


def _judged(rubric: Rubric, verdicts: Sequence[Verdict]) -> Iterator[tuple[Criterion, float]]:
    good = rubric.goodness(verdicts)
    for criterion in rubric.criteria:
        if criterion.id in good:
            yield criterion, good[criterion.id]


def _points(weight: float, good: float) -> float:
    return weight * good if weight > 0 else weight * (1.0 - good)


def weighted(rubric: Rubric, verdicts: Sequence[Verdict], *, clip: bool = True) -> float | None:
    """Returns sum(earned points) / sum(positive weights), clipped to [0, 1] by default.

    Clipped, it is no benchmark's score: HealthBench clips only the mean over all answers (`healthbench`).

    A judge that abstains on `river` takes its 2 points out of the sum below, too.

    >>> from herl.testing import make_task
    >>> rubric = make_task({"fish": 3.0, "river": 2.0, "zoo": -1.0}).rubric
    >>> def reward(**met):
    ...     return weighted(rubric, [Verdict(criterion_id=id, met=value) for id, value in met.items()])
    >>> reward(fish=True, river=False, zoo=False)
    0.6
    >>> reward(fish=True, river=False, zoo=True)
    0.4
    >>> reward(fish=True, river=None, zoo=False)
    1.0
    """
    judged = list(_judged(rubric, verdicts))
    best = sum(criterion.weight for criterion, _ in judged if criterion.weight > 0)
    if best <= 0:
        return None
    score = sum(_points(criterion.weight, good) for criterion, good in judged) / best
    return min(1.0, max(0.0, score)) if clip else score


def healthbench(rubric: Rubric, verdicts: Sequence[Verdict]) -> float | None:
    """Returns HealthBench's score of one answer: sum(points of met criteria) / sum(positive points).

    At most 1, and below 0 if the penalties outweigh what was earned. The benchmark's score is the mean over
    answers, clipped to [0, 1] (`clipped_reward` among an evaluation's results); a single answer is never
    clipped, so in training a bad answer still earns more than a worse one. Source: arXiv:2505.08775, section
    3; `calculate_score` and `_compute_clipped_stats` in healthbench_eval.py of openai/simple-evals.

    The example is that of simple-evals: 7 + 10 - 6 of 22 points.

    >>> from herl.testing import make_task
    >>> rubric = make_task({"a": 7.0, "b": 5.0, "c": 10.0, "d": -6.0}).rubric
    >>> healthbench(rubric, [Verdict(criterion_id=id, met=id != "b") for id in "abcd"])
    0.5
    >>> healthbench(rubric, [Verdict(criterion_id=id, met=id == "d") for id in "abcd"]) == -6 / 22
    True
    """
    return weighted(rubric, verdicts, clip=False)


def herl_medicine(rubric: Rubric, verdicts: Sequence[Verdict]) -> float | None:
    """Returns sum(w met) / sum(w) over the criteria with a positive weight, in [0, 1].

    This is the reward of medicine in HeRL's public code (verl/utils/reward_score/rar_implicit.py of
    sikelifei/HeRL), which sets negative weights to 0: pitfalls neither cost nor earn anything.

    >>> from herl.testing import make_task
    >>> rubric = make_task({"dose": 5.0, "tone": 3.0, "harm": -2.0}).rubric
    >>> herl_medicine(rubric, [Verdict(criterion_id=id, met=id != "tone") for id in ("dose", "tone", "harm")])
    0.625
    """
    judged = [
        (criterion.weight, good) for criterion, good in _judged(rubric, verdicts) if criterion.weight > 0
    ]
    total = sum(weight for weight, _ in judged)
    return sum(weight * good for weight, good in judged) / total if total > 0 else None


def absolute(rubric: Rubric, verdicts: Sequence[Verdict]) -> float | None:
    """Returns sum(earned points) / sum(absolute weights), in [-1, 1]. It is not a published score.

    An answer that fulfills everything earns 1 only if no weight is negative.

    >>> from herl.testing import make_task
    >>> rubric = make_task({"fish": 3.0, "zoo": -1.0}).rubric
    >>> fish, zoo = (Verdict(criterion_id=id, met=id == "zoo") for id in ("fish", "zoo"))
    >>> absolute(rubric, [fish, zoo])  # no fish, but an advertised zoo
    -0.25
    """
    judged = list(_judged(rubric, verdicts))
    total = sum(abs(criterion.weight) for criterion, _ in judged)
    if total <= 0:
        return None
    return sum(_points(criterion.weight, good) for criterion, good in judged) / total


def all_or_nothing(rubric: Rubric, verdicts: Sequence[Verdict]) -> float | None:
    """Returns 1.0 if every judged criterion is fulfilled, else 0.0.

    >>> from herl.testing import make_task
    >>> rubric = make_task({"fish": 3.0, "river": 2.0}).rubric
    >>> fish, river = (Verdict(criterion_id=id, met=id == "fish") for id in ("fish", "river"))
    >>> all_or_nothing(rubric, [fish, river]), all_or_nothing(rubric, [fish])
    (0.0, 1.0)
    """
    judged = list(_judged(rubric, verdicts))
    if not judged:
        return None
    return float(all(good >= 1.0 for _, good in judged))


def gated(rubric: Rubric, verdicts: Sequence[Verdict], *, clip: bool = True) -> float | None:
    """Returns 0.0 if a criterion marked `gate` fails, else the weighted score.

    >>> safe = Criterion(id="safe", text="Is safe.", gate=True)
    >>> useful = Criterion(id="useful", text="Is useful.", weight=3.0)
    >>> verdicts = [Verdict(criterion_id=id, met=id == "useful") for id in ("safe", "useful")]
    >>> gated(Rubric(criteria=(safe, useful)), verdicts), weighted(Rubric(criteria=(safe, useful)), verdicts)
    (0.0, 0.75)
    """
    if any(criterion.gate and good < 1.0 for criterion, good in _judged(rubric, verdicts)):
        return 0.0
    return weighted(rubric, verdicts, clip=clip)


ALL_OR_NOTHING = (all_or_nothing, gated)
"""Aggregations under which one verdict can undo all others, as it cannot in a sum."""


def by_category(
    rubric: Rubric, verdicts: Sequence[Verdict], *, weights: Mapping[str, float] = CATEGORY_WEIGHTS
) -> float | None:
    """Returns the share of fulfilled criteria, weighted by lower-cased category; unlisted ones weigh 1.

    With the default weights this is the explicit aggregation of Rubrics as Rewards (arXiv:2507.17746):
    sum(w c) / sum(w), where c is 1 for a fulfilled criterion, such as an avoided pitfall, and w comes from
    the criterion's category. The numbers in the data's `weight` column are not used.

    >>> dose = Criterion(id="dose", text="Names the dose.", category="Essential")
    >>> tone = Criterion(id="tone", text="Is friendly.", category="Optional")
    >>> verdicts = [Verdict(criterion_id=id, met=id == "dose") for id in ("dose", "tone")]
    >>> round(by_category(Rubric(criteria=(dose, tone)), verdicts), 2)  # 1.0 of 1.3 points
    0.77
    """
    judged = [
        (weights.get(criterion.category.lower(), 1.0), good) for criterion, good in _judged(rubric, verdicts)
    ]
    total = sum(weight for weight, _ in judged)
    return sum(weight * good for weight, good in judged) / total if total > 0 else None


def reaches(mean: float, bound: float) -> bool:
    """Returns whether a mean of verdicts reaches a bound, up to the rounding of the mean.

    >>> sum([0.7] * 3) / 3 >= 0.7, reaches(sum([0.7] * 3) / 3, 0.7)
    (False, True)
    """
    return mean >= bound - 1e-9
