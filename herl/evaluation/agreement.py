"""How far verdicts agree: shares, Cohen's kappa and Krippendorff's alpha, with 95 % intervals over prompts.

Each statistic is a function of counts that are summed over prompts, so all resamples of a bootstrap are
computed at once. That is why none is taken from torchmetrics, whose `CohenKappa` computes one table at a
time, and which has no alpha; the tests compare kappa with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from herl.evaluation.intervals import resampling_weights

Statistic = Callable[[np.ndarray], np.ndarray]
"""Sums of counts, [..., columns] -> its value, [...]; nan where it is undefined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A statistic with its 95 % confidence interval, by bootstrap over prompts."""

    value: float | None
    """None if it is undefined: nothing was compared, or (kappa, alpha) all verdicts are the same."""
    low: float | None
    high: float | None
    count: int
    """Number of verdicts, or pairs of them, that it rests on."""


def estimate(table: np.ndarray, statistic: Statistic, count: int, seed: int = 0) -> Estimate:
    """Returns a statistic of the sums over prompts.

    Args:
        table: Counts, [prompts, columns].
        statistic: One of this module's.
        count: `Estimate.count`.
        seed: Seed of the resampling.
    """
    if not len(table):
        return Estimate(value=None, low=None, high=None, count=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(table.sum(axis=0)))
        drawn = [statistic(weight @ table) for weight in resampling_weights(len(table), seed)]
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    if not math.isfinite(value) or not len(values):
        return Estimate(value=None, low=None, high=None, count=count)
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(value=value, low=float(low), high=float(high), count=count)


def by_prompt(rows: Iterable[tuple[Hashable, Sequence[float]]], columns: int) -> np.ndarray:
    """Returns the sums of rows of numbers by prompt, [prompts, columns]."""
    sums: dict[Hashable, np.ndarray] = {}
    for prompt, row in rows:
        sums.setdefault(prompt, np.zeros(columns))
        sums[prompt] += row
    return np.stack(list(sums.values())) if sums else np.zeros((0, columns))


def pair_row(first: bool, second: bool) -> tuple[int, int, int, int]:
    """Returns which of (both met, only the first, only the second, neither) two verdicts are, as 0 and 1."""
    return first and second, first and not second, second and not first, not first and not second


def disagreement(pairs: np.ndarray) -> np.ndarray:
    """Returns the share of pairs that differ, from sums of `pair_row`, [..., 4]."""
    return np.asarray((pairs[..., 1] + pairs[..., 2]) / pairs.sum(axis=-1))


def cohen_kappa(pairs: np.ndarray) -> np.ndarray:
    """Returns Cohen's kappa (doi:10.1177/001316446002000104) from sums of `pair_row`, [..., 4].

    It is the agreement beyond chance: 1 for the same verdicts, 0 for what two independent judges with these
    shares of met would have.
    """
    total = pairs.sum(axis=-1)
    agreed = (pairs[..., 0] + pairs[..., 3]) / total
    first, second = (pairs[..., 0] + pairs[..., 1]) / total, (pairs[..., 0] + pairs[..., 2]) / total
    by_chance = first * second + (1 - first) * (1 - second)
    return np.asarray((agreed - by_chance) / (1 - by_chance))


def alpha_row(verdicts: Sequence[bool]) -> tuple[float, int, int]:
    """Returns what one criterion of one answer adds to the sums of `krippendorff_alpha`.

    Args:
        verdicts: Of the judges that gave one; fewer than two add nothing.
    """
    met, given = sum(verdicts), len(verdicts)
    if given < 2:
        return 0.0, 0, 0
    return 2 * met * (given - met) / (given - 1), met, given - met


def krippendorff_alpha(sums: np.ndarray) -> np.ndarray:
    """Returns Krippendorff's alpha of nominal verdicts from sums of `alpha_row`, [..., 3].

    Observed by expected disagreement, from coincidences (Hayes and Krippendorff 2007,
    doi:10.1080/19312450709336664). Any number of judges may have left out any verdicts.
    """
    differing, met, unmet = sums[..., 0], sums[..., 1], sums[..., 2]
    return np.asarray(1 - (met + unmet - 1) * differing / (2 * met * unmet))


def ratio(sums: np.ndarray) -> np.ndarray:
    """Returns a mean from sums of (value, 1), [..., 2]."""
    return np.asarray(sums[..., 0] / sums[..., 1])
