"""Test-time self-improvement: answers are revised with hindsight and judged again; the best one is kept.

    attempt with verdicts -> [revision prompt -> revision -> verdicts] x rounds

The loop of learning without the learning (arXiv:2603.20046, at test time). `validate.py` makes the attempts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from herl.clock import PhaseClock
from herl.errors import ConfigError
from herl.hindsight import NoHindsight
from herl.rollout.render import render_all
from herl.rollout.stages import Stages
from herl.rollout.streaming import sample_and_judge
from herl.seeds import derive_seed
from herl.types import Judged, SampleRequest, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """An attempt and its revisions, in the order in which they were made."""

    task: Task
    answers: tuple[Judged, ...]
    """Round 0 is the plain attempt. Fewer than rounds + 1 where nothing was left to mend."""

    def best(self, rounds: int | None = None) -> Judged:
        """Returns the best answer of the first `rounds` revisions; of equals, the earlier one."""
        seen = self.answers if rounds is None else self.answers[: rounds + 1]
        return max(seen, key=lambda judged: _reward(judged))

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
    clock = clock or PhaseClock()
    found, over_long = list(trajectories), 0
    tasks = list({one.task.id: one.task for one in found}.values())
    for number in range(1, rounds + 1):
        asked = [_revision(one, stages, derive_seed(seed, number)) for one in found]
        requests = [request for some, _ in asked for request in some]
        over_long += sum(count for _, count in asked)
        judged = sample_and_judge(stages.sampler, stages.judge_runner, tasks, requests, clock, "validate")
        revision_of = {one.rollout.parent_id: one for group in judged.values() for one in group}
        found = [_extended(one, revision_of.get(one.best().rollout.id)) for one in found]
    return found, over_long


def check_rounds(key: str, rounds: int, stages: Stages) -> None:
    """Raises a ConfigError if that many revisions cannot be had."""
    if rounds < 0:
        raise ConfigError(f"{key}: expected at least 0, got {rounds}")
    if rounds and isinstance(stages.hindsight, NoHindsight):
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


def _revision(trajectory: Trajectory, stages: Stages, seed: int) -> tuple[list[SampleRequest], int]:
    """Asks for a revision of the best answer, if it needs one; returns how many prompts are too long, too."""
    best = trajectory.best()
    hindsights = stages.hindsight.build(trajectory.task, [best])
    prompts, over_long = render_all(stages, {one.parent.id: one.messages for one in hindsights})
    return [
        SampleRequest(
            task_id=trajectory.task.id,
            group_id=best.rollout.group_id,
            prompt_ids=prompt_ids,
            n=1,
            sampling=stages.plan.revision,
            seed=derive_seed(seed, parent_id, "revision"),
            parent_id=parent_id,
        )
        for parent_id, prompt_ids in prompts.items()
    ], over_long


def _extended(trajectory: Trajectory, revision: Judged | None) -> Trajectory:
    if revision is None:
        return trajectory
    return replace(trajectory, answers=(*trajectory.answers, revision))


def _reward(judged: Judged) -> float:
    return float("-inf") if judged.judgement.reward is None else judged.judgement.reward
