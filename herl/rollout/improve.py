"""Test-time self-improvement: answer, judge, revise with hindsight, judge again; the best answer is kept.

    prompt -> attempt -> verdicts -> [revision prompt -> revision -> verdicts] x rounds

The loop of learning without the learning (arXiv:2603.20046, at test time). Validation is its round 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from herl.clock import PhaseClock
from herl.errors import ConfigError
from herl.rollout.requests import attempt_request, open_groups, revision_requests
from herl.rollout.stages import Stages
from herl.rollout.streaming import sample_and_judge
from herl.seeds import derive_seed
from herl.types import Judged, Sampling, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """An attempt and its revisions, in the order in which they were made."""

    task: Task
    answers: tuple[Judged, ...]
    """Round 0 is the plain attempt. Fewer than rounds + 1 where nothing was left to mend."""

    def best(self, rounds: int | None = None) -> Judged:
        """Returns the best answer of the first `rounds` revisions; of equals, the earlier one."""
        seen = self.answers if rounds is None else self.answers[: rounds + 1]
        return max(seen, key=lambda answer: answer.reward if answer.has_reward else float("-inf"))

    def reward(self, rounds: int | None = None) -> float | None:
        """Returns the reward of the best answer; None where none could be judged."""
        return self.best(rounds).judgement.reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """What improve() returns."""

    trajectories: tuple[Trajectory, ...]
    """`attempts` of them for each prompt, in the order of the prompts."""
    dropped: Mapping[str, int]
    """Prompts over `max_prompt_tokens`: {"prompts": ..., "revision_prompts": ...}."""


def improve(
    tasks: Sequence[Task],
    stages: Stages,
    *,
    seed: int,
    rounds: int = 0,
    attempts: int = 1,
    sampling: Sampling | None = None,
    clock: PhaseClock | None = None,
) -> Improvement:
    """Answers each prompt, and lets the policy revise its best answer so far up to `rounds` times.

    An answer is final once the hindsight builder finds nothing to mend. The same seed, the same answers.

    Args:
        tasks: The prompts.
        stages: Sampler, judge and hindsight builder. How revisions are drawn is `stages.plan.revision`.
        seed: All randomness is a hash of it.
        rounds: Revisions of each attempt at most.
        attempts: Attempts at each prompt; each is revised on its own.
        sampling: How attempts are drawn; None for `stages.plan.attempt`.
        clock: Adds up the time, as "validate"; waiting for the judge counts as "judge".

    Raises:
        ConfigError: revisions are asked for, but there is nothing that writes revision prompts.
        AbstentionLimit: the judge fails too often.
        SamplerError: an answer could not be sampled.
    """
    check_rounds("rounds", rounds, stages)
    sample = partial(sample_and_judge, stages.sampler, stages.judge_runner)
    clock = clock or PhaseClock()
    groups, over_long = open_groups(tasks, stages, "heldout")
    requests = [
        attempt_request(
            group, attempts, sampling or stages.plan.attempt, derive_seed(seed, group.task.id, "heldout")
        )
        for group in groups
    ]
    task_of = {group.id: group.task for group in groups}
    judged = sample(groups, requests, clock, "validate").judged
    found = [Trajectory(task=task_of[one.rollout.group_id], answers=(one,)) for one in judged]
    revisions_over_long = 0
    for number in range(1, rounds + 1):
        key = (derive_seed(seed, number),)
        asked = [revision_requests(one.task, [one.best()], stages, n=1, key=key) for one in found]
        requests = [request for some in asked for request in some.requests]
        revisions_over_long += sum(some.over_long for some in asked)
        judged = sample(groups, requests, clock, "validate").judged
        revision_of = {one.rollout.parent_id: one for one in judged}
        found = [_extended(one, revision_of.get(one.best().rollout.id)) for one in found]
    dropped = {"prompts": over_long, "revision_prompts": revisions_over_long}
    return Improvement(trajectories=tuple(found), dropped=dropped)


def check_rounds(key: str, rounds: int, stages: Stages) -> None:
    """Raises a ConfigError if that many revisions cannot be had."""
    if rounds < 0:
        raise ConfigError(f"{key}: expected at least 0, got {rounds}")
    if rounds and not stages.hindsight.revises:
        raise ConfigError(
            f"{key}: expected 0 with a hindsight that writes no revision prompts, got {rounds}: "
            "add hindsight=rewrite"
        )


def check_attempts(key: str, attempts: int, sampling: Sampling | None) -> None:
    """Raises a ConfigError if that many attempts would all be the same."""
    if attempts > 1 and sampling is not None and sampling.temperature == 0:
        raise ConfigError(
            f"{key}: expected 1 with rollout.heldout.temperature=0, under which all are the same, "
            f"got {attempts}"
        )


def rewards_by_round(trajectories: Sequence[Trajectory], rounds: int) -> list[float]:
    """Returns the mean reward of the best answers after 0, 1, ... `rounds` revisions."""
    means = []
    for number in range(rounds + 1):
        rewards = [r for one in trajectories if (r := one.reward(number)) is not None]
        means.append(sum(rewards) / len(rewards) if rewards else float("nan"))
    return means


def _extended(trajectory: Trajectory, revision: Judged | None) -> Trajectory:
    if revision is None:
        return trajectory
    return replace(trajectory, answers=(*trajectory.answers, revision))
