"""Test-time self-improvement: answers are revised with hindsight and judged again, and the best is kept.

    attempt with verdicts -> [revision prompt -> revision -> verdicts] x rounds

The training loop without the training (arXiv:2603.20046, at test time). `validate.py` makes the attempts.
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
    """An attempt and its revisions, in the order they were made."""

    task: Task
    answers: tuple[Judged, ...]
    """Round 0 is the plain attempt. There are fewer than rounds + 1 if nothing was left to improve."""

    @property
    def group(self) -> Group:
        """The attempt's group, opened with its prompt."""
        attempt = self.answers[0].rollout
        return Group(id=attempt.group_id, task=self.task, prompt_ids=attempt.prompt_ids)

    def best(self, rounds: int | None = None) -> Judged:
        """Returns the best answer within the first `rounds` revisions; among equals, the earliest."""
        seen = self.answers if rounds is None else self.answers[: rounds + 1]
        return max(seen, key=lambda answer: answer.reward if answer.has_reward else float("-inf"))

    def reward(self, rounds: int | None = None) -> float | None:
        """Returns the reward of the best answer; None if none could be judged."""
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

    An answer is final once the hindsight builder finds nothing to improve. The same seed gives the same
    revisions.

    Args:
        trajectories: Attempts.
        stages: Sampler, judge and hindsight builder. Revisions are drawn with `stages.plan.revision`.
        seed: All randomness is a hash of it.
        rounds: Maximum number of revisions of each attempt; 0 samples nothing.
        clock: Adds up the time, as "validate"; waiting for the judge counts as "judge".

    Returns:
        The trajectories with their revisions, in the same order, and the number of revision prompts dropped
        because they exceed `max_prompt_tokens`.

    Raises:
        ConfigError: revisions are requested, but nothing writes revision prompts.
        AbstentionLimit: the judge fails too often.
        SamplerError: an answer could not be sampled.
    """
    check_rounds("rounds", rounds, stages)
    sample = partial(sample_and_judge, stages)
    clock = clock or PhaseClock()
    improved, over_long = list(trajectories), 0
    groups = list({one.group.id: one.group for one in improved}.values())
    for number in range(1, rounds + 1):
        key = (derive_seed(seed, number),)
        asked = [revision_requests(one.task, [one.best()], stages, n=1, key=key) for one in improved]
        # numbered by round: a draft that stays the best is revised again, and no id may come twice
        requests = [replace(request, first=number - 1) for made in asked for request in made.requests]
        over_long += sum(made.over_long for made in asked)
        judged = sample(groups, requests, clock, "validate").judged
        revision_of = {revision.rollout.parent_id: revision for revision in judged}
        improved = [_extended(one, revision_of.get(one.best().rollout.id)) for one in improved]
    return improved, over_long


def check_rounds(key: str, rounds: int, stages: Stages) -> None:
    """Raises a ConfigError if this many revisions are impossible."""
    if rounds < 0:
        raise ConfigError(f"{key}: expected at least 0, got {rounds}")
    if rounds and not stages.hindsight.revises:
        raise ConfigError(
            f"{key}: expected 0 with a hindsight builder that writes no revision prompts, got {rounds}: "
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
