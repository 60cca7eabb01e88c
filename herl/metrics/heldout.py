"""Metrics of a validation: plain attempts at held-out prompts, and their revisions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from herl.metrics.episodes import episode_metrics
from herl.metrics.rubric import rewards, rubric_metrics
from herl.rollout.improve import rewards_by_round
from herl.rollout.validate import HeldOut


def heldout_metrics(batches: Sequence[HeldOut], revisions: int) -> dict[str, float]:
    """Returns the metrics of a validation.

    `heldout/clipped_reward` is the mean reward clipped to [0, 1], HealthBench's score. It is there only if
    some answer's reward is outside, since it is the mean reward otherwise.

    Args:
        batches: The results, batch by batch.
        revisions: Maximum number of revisions of each attempt.
    """
    trajectories = [one for batch in batches for one in batch.trajectories]
    dropped: Counter[str] = Counter()
    for batch in batches:
        dropped.update(batch.dropped)
    metrics = rubric_metrics("heldout", [(one.task, one.answers[0]) for one in trajectories])
    metrics |= {f"heldout/dropped_{name}": float(count) for name, count in dropped.items() if count}
    if any(batch.episodes for batch in batches):
        played = [one.answers[0].rollout for one in trajectories]
        metrics |= {f"heldout/{name}": value for name, value in episode_metrics(played).items()}
    plain = rewards(one.answers[0] for one in trajectories)
    if any(not 0.0 <= reward <= 1.0 for reward in plain):
        metrics["heldout/clipped_reward"] = min(1.0, max(0.0, metrics["heldout/reward"]))
    for number, reward in enumerate(rewards_by_round(trajectories, revisions)):
        if number and not math.isnan(reward):
            metrics[f"heldout/reward_revised_{number}"] = reward
    return metrics
