"""Verdicts and weights -> one reward. Pure functions, chosen by `aggregation=`.

A criterion whose verdict abstained leaves both the numerator and the denominator. Each function returns
None if no criterion is left. A criterion with a negative weight costs its weight when the bad thing
happens and earns nothing when it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from herl.types import Criterion, Rubric, Verdict

CATEGORY_WEIGHTS = {"essential": 1.0, "important": 0.7, "optional": 0.3, "pitfall": 0.9}
"""Category weights from Rubrics as Rewards (arXiv:2507.17746)."""


def goodness(criterion: Criterion, verdict: Verdict) -> float:
    """Returns how well a criterion is fulfilled, in [0, 1]. The verdict must not be an abstention."""
    value = float(bool(verdict.met)) if verdict.score is None else verdict.score
    return 1.0 - value if criterion.undesirable else value


def _judged(rubric: Rubric, verdicts: Sequence[Verdict]) -> Iterator[tuple[Criterion, float]]:
    by_id = {verdict.criterion_id: verdict for verdict in verdicts}
    for criterion in rubric.criteria:
        verdict = by_id.get(criterion.id)
        if verdict is not None and verdict.met is not None:
            yield criterion, goodness(criterion, verdict)


def _points(weight: float, good: float) -> float:
    return weight * good if weight > 0 else weight * (1.0 - good)


def weighted(rubric: Rubric, verdicts: Sequence[Verdict], *, clip: bool = True) -> float | None:
    """Returns sum(earned points) / sum(positive weights), clipped to [0, 1] by default.

    This is HealthBench's score (arXiv:2505.08775).
    """
    judged = list(_judged(rubric, verdicts))
    best = sum(criterion.weight for criterion, _ in judged if criterion.weight > 0)
    if best <= 0:
        return None
    score = sum(_points(criterion.weight, good) for criterion, good in judged) / best
    return min(1.0, max(0.0, score)) if clip else score


def absolute(rubric: Rubric, verdicts: Sequence[Verdict]) -> float | None:
    """Returns sum(earned points) / sum(absolute weights), in [-1, 1]."""
    judged = list(_judged(rubric, verdicts))
    total = sum(abs(criterion.weight) for criterion, _ in judged)
    if total <= 0:
        return None
    return sum(_points(criterion.weight, good) for criterion, good in judged) / total


def all_or_nothing(rubric: Rubric, verdicts: Sequence[Verdict]) -> float | None:
    """Returns 1.0 if every judged criterion is fulfilled, else 0.0."""
    judged = list(_judged(rubric, verdicts))
    if not judged:
        return None
    return float(all(good >= 1.0 for _, good in judged))


def gated(rubric: Rubric, verdicts: Sequence[Verdict], *, clip: bool = True) -> float | None:
    """Returns 0.0 if a criterion marked `gate` fails, else the weighted score."""
    if any(criterion.gate and good < 1.0 for criterion, good in _judged(rubric, verdicts)):
        return 0.0
    return weighted(rubric, verdicts, clip=clip)


def by_category(
    rubric: Rubric, verdicts: Sequence[Verdict], *, weights: Mapping[str, float] = CATEGORY_WEIGHTS
) -> float | None:
    """Returns the share of fulfilled criteria, weighted by lower-cased category; unlisted ones weigh 1."""
    judged = [
        (weights.get(criterion.category.lower(), 1.0), good) for criterion, good in _judged(rubric, verdicts)
    ]
    total = sum(weight for weight, _ in judged)
    return sum(weight * good for weight, good in judged) / total if total > 0 else None
