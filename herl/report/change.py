"""Whether a held-out reward changed: a test whose false alarms are at most 5 %.

Validations answer the same prompts, so their rewards are compared prompt by prompt. If nothing changed, each
difference is as likely to have the other sign. That gives the test: flip signs at random, and count how often
the mean is as far from zero as the one that was found. It needs no normal distribution and holds for few
prompts and for rewards of 0 and 1. Summaries without rewards by prompt have only two means with intervals.
They are compared as if they were independent, which is cautious for the same prompts.
"""

from __future__ import annotations

from math import hypot
from statistics import NormalDist

import numpy as np

from herl.report.run_files import Validation

LEVEL = 0.05
_FLIPS = 9999
_AT_ONCE = 1 << 22


def moved(first: Validation, last: Validation, comparisons: int = 1) -> int:
    """Returns 1 for a rise of the reward, -1 for a fall, and 0 where a 5 % test cannot tell.

    Args:
        first: A validation with a reward.
        last: A later one.
        comparisons: Number of pairs from which this one was picked because it looked most different.
    """
    level = LEVEL / max(1, comparisons)
    differences = paired(first, last)
    if differences is not None:
        return int(np.sign(differences.mean())) if sign_flip(differences) <= level else 0
    before, after = first.rows["reward"], last.rows["reward"]
    change = after.mean - before.mean
    halves = [max(row.high - row.mean, row.mean - row.low) for row in (before, after)]
    wider = NormalDist().inv_cdf(1 - level / 2) / NormalDist().inv_cdf(0.975)  # the intervals are of 95 %
    return int(np.sign(change)) if abs(change) > wider * hypot(*halves) else 0


def paired(first: Validation, last: Validation) -> np.ndarray | None:
    """Returns how much each prompt's reward changed, [prompts]; None if the two cannot be paired."""
    if not first.prompts or first.prompts != last.prompts or len(first.rewards) != len(last.rewards):
        return None
    both = [
        (before, after)
        for before, after in zip(first.rewards, last.rewards, strict=True)
        if before is not None and after is not None
    ]
    return np.array([after - before for before, after in both]) if len(both) > 1 else None


def sign_flip(differences: np.ndarray) -> float:
    """Returns the two-sided p-value of a mean change of zero, by a paired test with random signs.

    Args:
        differences: Changes, [prompts].
    """
    rng = np.random.default_rng(0)
    observed = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()  # ties count, whatever the rounding
    step = max(1, _AT_ONCE // len(differences))
    as_far = 0
    for start in range(0, _FLIPS, step):
        flips = rng.integers(0, 2, (min(step, _FLIPS - start), len(differences)), np.int8) * 2.0 - 1.0
        as_far += int((np.abs(flips @ differences) >= observed).sum())
    return (1 + as_far) / (1 + _FLIPS)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of the mean change, by bootstrap over prompts."""
    rng = np.random.default_rng(0)
    size = len(differences)
    weights = rng.multinomial(size, np.full(size, 1 / size), size=2000)
    low, high = np.percentile(weights @ differences / size, [2.5, 97.5])
    return float(low), float(high)
