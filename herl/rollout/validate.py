"""Validation: plain attempts at held-out prompts, and optionally their revisions.

    held-out prompt -> attempts -> verdicts [-> improve.py, for `revisions` rounds]

Every validation of a run uses the same random numbers, so that their results can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from herl.clock import PhaseClock
from herl.distributed import together
from herl.errors import ConfigError
from herl.rollout.improve import Trajectory, check_rounds, improve
from herl.rollout.requests import attempt_request, open_groups
from herl.rollout.stages import Stages
from herl.rollout.streaming import sample_and_judge
from herl.seeds import derive_seed
from herl.types import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The result of validate()."""

    trajectories: tuple[Trajectory, ...]
    """`attempts` trajectories for each prompt, in the order of the prompts."""
    dropped: Mapping[str, int]
    """Counts of prompts over `max_prompt_tokens`: {"prompts": ..., "revision_prompts": ...}."""
    episodes: bool = False
    """Whether there is an environment that replies, so that an answer may take several turns."""


def validate(
    tasks: Sequence[Task],
    stages: Stages,
    *,
    seed: int,
    attempts: int = 1,
    revisions: int = 0,
    clock: PhaseClock | None = None,
) -> HeldOut:
    """Answers held-out prompts, and lets the policy revise its best answer so far up to `revisions` times.

    Args:
        tasks: The prompts.
        stages: Sampler, judge and hindsight builder. Attempts are drawn with `stages.plan.heldout`.
        seed: All randomness is a hash of it.
        attempts: Attempts at each prompt; each is revised separately.
        revisions: Maximum number of revisions of each attempt.
        clock: Adds up the time, as "validate"; waiting for the judge counts as "judge".

    Raises:
        ConfigError: revisions are requested, but nothing writes revision prompts.
        AbstentionLimit: the judge fails too often.
        SamplerError: an answer could not be sampled.
    """
    check_rounds("revisions", revisions, stages)
    clock = clock or PhaseClock()
    return together(lambda: _validated(tasks, stages, seed, attempts, revisions, clock))


def _validated(
    tasks: Sequence[Task], stages: Stages, seed: int, attempts: int, revisions: int, clock: PhaseClock
) -> HeldOut:
    groups, over_long = open_groups(tasks, stages, "heldout")
    sampling = stages.plan.heldout or stages.plan.attempt
    requests = [
        attempt_request(group, attempts, sampling, derive_seed(seed, group.task.id, "heldout"))
        for group in groups
    ]
    sample = partial(sample_and_judge, stages)
    judged = sample(groups, requests, clock, "validate").judged
    task_of = {group.id: group.task for group in groups}
    plain = [Trajectory(task=task_of[attempt.rollout.group_id], answers=(attempt,)) for attempt in judged]
    revised, revisions_over_long = improve(plain, stages, seed=seed, rounds=revisions, clock=clock)
    dropped = {"prompts": over_long, "revision_prompts": revisions_over_long}
    return HeldOut(
        trajectories=tuple(revised),
        dropped=dropped,
        episodes=stages.environment.replies,
    )


def check_validation(attempts: int, revisions: int, stages: Stages) -> None:
    """Checks the settings of a module's validations.

    Raises:
        ConfigError: nothing writes revision prompts, or there would be no attempts, or only identical ones.
    """
    check_rounds("validation.revisions", revisions, stages)
    key, sampling = "validation.attempts", stages.plan.heldout
    if attempts < 1:
        raise ConfigError(f"{key}: expected at least 1, got {attempts}")
    if attempts > 1 and sampling is not None and sampling.temperature == 0:
        raise ConfigError(
            f"{key}: expected 1 with validation.sampling.temperature=0, where all attempts are identical, "
            f"got {attempts}"
        )
