"""Stage 7: group rewards -> advantages. A pure function, chosen by `advantages`.

A group whose rewards differ by less than `tolerance` carries no signal: its advantages are exactly 0 and
its answers are never trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Scale = Literal["group_std", "batch_std", "none"]
Baseline = Literal["mean", "leave_one_out"]


def group_advantages(
    rewards: Sequence[Sequence[float]],
    is_attempt: Sequence[Sequence[bool]],
    *,
    scale: Scale = "group_std",
    baseline: Baseline = "mean",
    baseline_over: Literal["all", "attempts"] = "all",
    tolerance: float = 1e-4,
    epsilon: float = 1e-6,
) -> list[list[float]]:
    """Returns one advantage per member: (reward - baseline) / (scale + epsilon).

    Args:
        rewards: Rewards of each group's members, bonus included.
        is_attempt: Whether each member is an attempt; False for revisions and replayed answers.
        scale: `group_std` divides by the group's unbiased standard deviation (GRPO,
            arXiv:2402.03300), `batch_std` by that of all centered rewards of the batch (REINFORCE++),
            `none` does not divide (Dr.GRPO, arXiv:2503.20783).
        baseline: The mean, or the mean of the other members (RLOO, arXiv:2402.14740).
        baseline_over: Whether the mean is over all members or attempts only. The scale is always over all
            members: attempts can be nearly equal, which would blow up a revision's advantage.
        tolerance: Spread of rewards (largest minus smallest) below which a group has no signal.
            Above 0 because a judge's floats are noisy.
        epsilon: Added to the scale.

    A reward above its group's mean gives a positive advantage. The second group has no signal.

    >>> rewards = [[0.0, 0.5, 1.0], [0.4, 0.4]]
    >>> is_attempt = [[True, True, False], [True, True]]
    >>> [[round(a, 2) for a in group] for group in group_advantages(rewards, is_attempt)]
    [[-1.0, 0.0, 1.0], [0.0, 0.0]]
    >>> group_advantages(rewards, is_attempt, scale="none", baseline_over="attempts")
    [[-0.25, 0.25, 0.75], [0.0, 0.0]]
    >>> group_advantages(rewards, is_attempt, scale="none", baseline="leave_one_out")
    [[-0.75, 0.0, 0.75], [0.0, 0.0]]
    """
    flat = [max(group, default=0.0) - min(group, default=0.0) < tolerance for group in rewards]
    counted = [
        [baseline_over == "all" or counts for counts in mask] if any(mask) else [True] * len(mask)
        for mask in is_attempt
    ]
    centered = [_center(group, mask, baseline) for group, mask in zip(rewards, counted, strict=True)]
    pooled = [value for group, skip in zip(centered, flat, strict=True) for value in group if not skip]
    advantages = []
    for group, values, skip in zip(rewards, centered, flat, strict=True):
        if skip:
            advantages.append([0.0] * len(group))
            continue
        if scale == "none":
            divisor = 1.0
        elif scale == "batch_std":
            divisor = _std(pooled) + epsilon
        else:
            divisor = _std(group) + epsilon
        advantages.append([value / divisor for value in values])
    return advantages


def ones(rewards: Sequence[Sequence[float]], is_attempt: Sequence[Sequence[bool]]) -> list[list[float]]:
    """Returns 1 for every member: selection has already decided what to learn from.

    Args:
        rewards: Rewards of each group's members.
        is_attempt: Not used.

    >>> ones([[0.9], [0.2, 0.7]], [[True], [True, False]])
    [[1.0], [1.0, 1.0]]
    """
    return [[1.0] * len(group) for group in rewards]


def _center(rewards: Sequence[float], counted: Sequence[bool], baseline: Baseline) -> list[float]:
    total = math.fsum(r for r, counts in zip(rewards, counted, strict=True) if counts)
    count = sum(counted)
    centered = []
    for reward, counts in zip(rewards, counted, strict=True):
        if baseline == "leave_one_out" and counts and count > 1:
            centered.append(reward - (total - reward) / (count - 1))
        else:
            centered.append(reward - total / count)
    return centered


def _std(values: Sequence[float]) -> float:
    """Unbiased standard deviation; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
