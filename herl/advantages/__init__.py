"""Stage 7: groups -> advantages. A pure function, chosen by `advantages`.

    group_advantages    compares rewards, as GRPO does
    ones                compares nothing
    by_criterion.py     compares the verdicts on each criterion

What an `emphasis` (emphasis.py, contrast.py, dropout.py) changes is seen by advantages alone: selection,
replay, curves and checkpoints go on with the judge's rewards.

A group whose members differ by less than `tolerance` carries no signal: its advantages are exactly 0 and
its answers are never trained on.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from herl.errors import ConfigError
from herl.types import Group

Scale = Literal["group_std", "batch_std", "none"]
Baseline = Literal["mean", "leave_one_out"]


@runtime_checkable
class Advantages(Protocol):
    """Stage 7: all groups of a batch, on all ranks -> advantages.

    One with an attribute `needs_verdicts` that is true is refused with a judge that gives none, and one with
    `adds_up` with an `aggregation` under which one verdict undoes all others.
    """

    def __call__(self, groups: Sequence[Group], seed: int) -> list[list[float]]:
        """Returns one advantage for each member of each group.

        Args:
            groups: The groups of a batch. `member.total` is a member's reward with its bonus,
                `member.origin` is "policy" for an attempt, `member.judged.judgement.verdicts` are its
                verdicts on `group.task.rubric`. A batch with bonuses is compared twice, once with bonuses
                of 0 (`herl.rollout.collect.compare`), so this must be a pure function.
            seed: All randomness is a hash of it; the same for both comparisons.
        """
        ...


def spares_new(advantages: Advantages) -> bool:
    """Whether a revision that fulfills a criterion that no attempt does gets no negative advantage, as far as
    is known: of functions of one's own, nothing is."""
    if getattr(advantages, "func", advantages) in (group_advantages, ones):
        return False
    return bool(getattr(advantages, "spare_new", True))


def check_takes_groups(advantages: Advantages) -> None:
    """Checks that a function takes groups.

    Raises:
        ConfigError: names its parameters.
    """
    try:
        inspect.signature(advantages).bind(groups=[], seed=0)
    except TypeError as error:
        given = ", ".join(inspect.signature(advantages).parameters)
        raise ConfigError(
            f"advantages: expected a function of (groups, seed), got one of ({given}). A group's "
            "rewards are [m.total for m in group.members]"
        ) from error


def group_advantages(
    groups: Sequence[Group],
    seed: int = 0,
    *,
    scale: Scale = "group_std",
    baseline: Baseline = "mean",
    baseline_over: Literal["all", "attempts"] = "all",
    tolerance: float = 1e-4,
    epsilon: float = 1e-6,
) -> list[list[float]]:
    """Returns one advantage per member: (reward - baseline) / (scale + epsilon).

    Args:
        groups: Their members' rewards are compared, bonus included.
        seed: Not used.
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

    >>> from herl.testing import make_group, make_judged
    >>> revision = make_judged(1.0, id="group/0/0", parent_id="group/0")
    >>> groups = [make_group(make_judged(0.0), make_judged(0.5), revision)]
    >>> groups.append(make_group(make_judged(0.4), make_judged(0.4)))
    >>> [[round(a, 2) for a in group] for group in group_advantages(groups)]
    [[-1.0, 0.0, 1.0], [0.0, 0.0]]
    >>> group_advantages(groups, scale="none", baseline_over="attempts")
    [[-0.25, 0.25, 0.75], [0.0, 0.0]]
    >>> group_advantages(groups, scale="none", baseline="leave_one_out")
    [[-0.75, 0.0, 0.75], [0.0, 0.0]]
    """
    rewards = [[member.total for member in group.members] for group in groups]
    is_attempt = [[member.origin == "policy" for member in group.members] for group in groups]
    flat = [max(group, default=0.0) - min(group, default=0.0) < tolerance for group in rewards]
    counted = [
        [baseline_over == "all" or counts for counts in mask] if any(mask) else [True] * len(mask)
        for mask in is_attempt
    ]
    centered = [_center(group, mask, baseline) for group, mask in zip(rewards, counted, strict=True)]
    pooled = [value for group, skip in zip(centered, flat, strict=True) for value in group if not skip]
    batch_std = std(pooled) if scale == "batch_std" else math.nan
    advantages = []
    for group, values, skip in zip(rewards, centered, flat, strict=True):
        if skip:
            advantages.append([0.0] * len(group))
            continue
        if scale == "none":
            divisor = 1.0
        elif scale == "batch_std":
            divisor = batch_std + epsilon
        else:
            divisor = std(group) + epsilon
        advantages.append([value / divisor for value in values])
    return advantages


def ones(groups: Sequence[Group], seed: int = 0) -> list[list[float]]:
    """Returns 1 for every member: selection has already decided what to learn from.

    Args:
        groups: Their members.
        seed: Not used.

    >>> from herl.testing import make_group, make_judged
    >>> ones([make_group(make_judged(0.9)), make_group(make_judged(0.2), make_judged(0.7))])
    [[1.0], [1.0, 1.0]]
    """
    return [[1.0] * len(group.members) for group in groups]


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


def std(values: Sequence[float]) -> float:
    """Unbiased standard deviation; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
