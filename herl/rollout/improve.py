"""Test-time self-improvement: answers are revised with hindsight and judged again; the best one is kept.

    attempt with verdicts -> [revision prompt -> revision -> verdicts] x rounds

The loop of learning without the learning (arXiv:2603.20046, at test time). `validate.py` makes the attempts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from herl.clock import PhaseClock
from herl.errors import ConfigError
from herl.rollout.requests import revision_requests
from herl.rollout.stages import Stages
from herl.rollout.streaming import sample_and_judge
from herl.seeds import derive_seed
from herl.types import Group, Judged, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """An attempt and its revisions, in the order in which they were made."""

    task: Task
    answers: tuple[Judged, ...]
    """Round 0 is the plain attempt. Fewer than rounds + 1 where nothing was left to mend."""

    @property
    def group(self) -> Group:
        """The attempt's group, opened with its prompt."""
        attempt = self.answers[0].rollout
        return Group(id=attempt.group_id, task=self.task, prompt_ids=attempt.prompt_ids)

    def best(self, rounds: int | None = None) -> Judged:
        """Returns the best answer of the first `rounds` revisions; of equals, the earlier one."""
        seen = self.answers if rounds is None else self.answers[: rounds + 1]
        return max(seen, key=lambda answer: answer.reward if answer.has_reward else float("-inf"))

    def reward(self, rounds: int | None = None) -> float | None:
        """Returns the reward of the best answer; None where none could be judged."""
        return self.best(rounds).judgement.reward


def improve(
    trajectories: Sequence[Trajectory],
    stages: Stages,
    *,
    seed: int,
    rounds: int,
    clock: PhaseClock | None = None,
) -> tuple[list[Trajectory], int]:
    """Lets the policy revise the best answer so far of each trajectory up to `rounds` times.

    An answer is final once the hindsight builder finds nothing to mend. The same seed, the same revisions.

    Args:
        trajectories: Attempts.
        stages: Sampler, judge and hindsight builder. How revisions are drawn is `stages.plan.revision`.
        seed: All randomness is a hash of it.
        rounds: Revisions of each attempt at most; with 0 nothing is sampled.
        clock: Adds up the time, as "validate"; waiting for the judge counts as "judge".

    Returns:
        The trajectories with their revisions, in the same order, and the number of revision prompts that were
        left out since they are longer than `max_prompt_tokens`.

    Raises:
        ConfigError: revisions are asked for, but there is nothing that writes revision prompts.
        AbstentionLimit: the judge fails too often.
        SamplerError: an answer could not be sampled.
    """
    check_rounds("rounds", rounds, stages)
    sample = partial(sample_and_judge, stages.sampler, stages.judge_runner)
    clock = clock or PhaseClock()
    found, over_long = list(trajectories), 0
    groups = list({one.group.id: one.group for one in found}.values())
    for number in range(1, rounds + 1):
        key = (derive_seed(seed, number),)
        asked = [revision_requests(one.task, [one.best()], stages, n=1, key=key) for one in found]
        requests = [request for some in asked for request in some.requests]
        over_long += sum(some.over_long for some in asked)
        judged = sample(groups, requests, clock, "validate").judged
        revision_of = {revision.rollout.parent_id: revision for revision in judged}
        found = [_extended(one, revision_of.get(one.best().rollout.id)) for one in found]
    return found, over_long


def check_rounds(key: str, rounds: int, stages: Stages) -> None:
    """Raises a ConfigError if that many revisions cannot be had."""
    if rounds < 0:
        raise ConfigError(f"{key}: expected at least 0, got {rounds}")
    if rounds and not stages.hindsight.revises:
        raise ConfigError(
            f"{key}: expected 0 with a hindsight that writes no revision prompts, got {rounds}: "
            "add hindsight=rewrite"
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
