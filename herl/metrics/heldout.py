"""The numbers of a validation: plain attempts at held-out prompts, and their revisions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from herl.metrics.rubric import rubric_metrics
from herl.rollout.improve import Trajectory, rewards_by_round


def heldout_metrics(
    trajectories: Sequence[Trajectory], dropped: Mapping[str, int], revisions: int
) -> dict[str, float]:
    """Returns the numbers of a validation.

    Args:
        trajectories: Each attempt with its revisions.
        dropped: Prompts that were left out, by reason.
        revisions: Of each attempt, at most.
    """
    metrics = rubric_metrics("heldout", [(one.task, one.answers[0]) for one in trajectories])
    metrics |= {f"heldout/dropped_{name}": float(count) for name, count in dropped.items() if count}
    for number, reward in enumerate(rewards_by_round(trajectories, revisions)):
        if number and not math.isnan(reward):
            metrics[f"heldout/reward_revised_{number}"] = reward
    return metrics
