"""Validation: plain attempts at held-out prompts, and their revisions if wished.

    held-out prompt -> attempts -> verdicts [-> improve.py, for `revisions` rounds]

The same seed gives the same random numbers in every validation of a run, so that their results can be
compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from herl.clock import PhaseClock
from herl.errors import ConfigError
from herl.rollout.improve import Trajectory, check_rounds, improve
from herl.rollout.requests import attempt_request, open_groups
from herl.rollout.stages import Stages
from herl.rollout.streaming import sample_and_judge
from herl.seeds import derive_seed
from herl.types import Sampling, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What validate() returns."""

    trajectories: tuple[Trajectory, ...]
    """`attempts` of them for each prompt, in the order of the prompts."""
    dropped: Mapping[str, int]
    """Prompts over `max_prompt_tokens`: {"prompts": ..., "revision_prompts": ...}."""


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
        stages: Sampler, judge and hindsight builder. Attempts are drawn as `stages.plan.heldout` says.
        seed: All randomness is a hash of it.
        attempts: Attempts at each prompt; each is revised on its own.
        revisions: Revisions of each attempt at most.
        clock: Adds up the time, as "validate"; waiting for the judge counts as "judge".

    Raises:
        ConfigError: revisions are asked for, but there is nothing that writes revision prompts.
        AbstentionLimit: the judge fails too often.
        SamplerError: an answer could not be sampled.
    """
    check_rounds("revisions", revisions, stages)
    clock = clock or PhaseClock()
    groups, over_long = open_groups(tasks, stages, "heldout")
    sampling = stages.plan.heldout or stages.plan.attempt
    requests = [
        attempt_request(group, attempts, sampling, derive_seed(seed, group.task.id, "heldout"))
        for group in groups
    ]
    judged = sample_and_judge(stages.sampler, stages.judge_runner, groups, requests, clock, "validate").judged
    task_of = {group.id: group.task for group in groups}
    plain = [Trajectory(task=task_of[attempt.rollout.group_id], answers=(attempt,)) for attempt in judged]
    found, revisions_over_long = improve(plain, stages, seed=seed, rounds=revisions, clock=clock)
    dropped = {"prompts": over_long, "revision_prompts": revisions_over_long}
    return HeldOut(trajectories=tuple(found), dropped=dropped)


def check_attempts(key: str, attempts: int, sampling: Sampling | None) -> None:
    """Raises a ConfigError if there would be no attempt, or only attempts that are the same."""
    if attempts < 1:
        raise ConfigError(f"{key}: expected at least 1, got {attempts}")
    if attempts > 1 and sampling is not None and sampling.temperature == 0:
        raise ConfigError(
            f"{key}: expected 1 with rollout.heldout.temperature=0, under which all are the same, "
            f"got {attempts}"
        )
