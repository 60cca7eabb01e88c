"""Checks, on made-up groups, that the settings of a run can give any answer an advantage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from herl.advantages import check_takes_groups
from herl.errors import ConfigError
from herl.rollout.stages import Stages
from herl.types import Criterion, Group, Judged, Judgement, Rollout, Rubric, SampleRequest, Task, Verdict


def check_signal(stages: Stages) -> None:
    """Refuses settings under which no group can ever have an advantage other than 0.

    Tries selection and advantages on made-up groups: attempts that all differ, and, if there is hindsight or
    replay, the same with answers that beat them all.

    Raises:
        ConfigError: the policy would never be updated, or advantages expect something else than groups.
    """
    check_takes_groups(stages.advantages)
    count = stages.plan.attempts_per_prompt
    joined = stages.adds_answers
    for better in (0.0, 0.5) if joined else (0.0,):
        for scale in (1.0, 100.0):  # a threshold may fit rewards beyond 1
            if any(_trial(stages, [scale * (i + 1) / count for i in range(count)], better * scale)):
                return
    if count > 1:
        raise ConfigError(
            "selection, advantages: expected groups whose members can differ in their advantages, but these "
            "two leave every group with advantages of 0: with selection=best use advantages=ones, otherwise "
            "lower advantages.tolerance or selection.at_least"
        )
    why = (
        "a revision takes the place of the only attempt and has nothing to be compared with: use "
        "selection.placement=append, or more attempts"
        if joined
        else "a single answer has nothing to be compared with"
    )
    where = "" if joined else " without hindsight"
    raise ConfigError(f"rollout.attempts_per_prompt: expected at least 2{where}, got 1: {why}")


def trial_advantages(stages: Stages) -> list[float]:
    """Returns the advantages that a loss would get for a made-up group with rewards spread from 0 to 1."""
    count = max(2, stages.plan.attempts_per_prompt)
    return _trial(stages, [index / (count - 1) for index in range(count)])


def _trial(stages: Stages, rewards: Sequence[float], better: float = 0.0) -> list[float]:
    """The advantages of a made-up group with these attempts, each of which fulfills one criterion more.

    If `better` is above 0, a revision joins that earns this much more than the best attempt and fulfills all
    criteria.
    """
    criteria = [Criterion(id=str(i), text="trial") for i in range(len(rewards) - (not better))]
    task = Task(id="trial", messages=(), rubric=Rubric(criteria=tuple(criteria)))
    request = SampleRequest(
        task_id=task.id, group_id=task.id, prompt_ids=(), n=1, sampling=stages.plan.attempt, seed=0
    )
    attempts = [_made_up(request, i, reward, criteria, fulfilled=i) for i, reward in enumerate(rewards)]
    revisions = []
    if better:
        asked = replace(request, parent_id=attempts[-1].rollout.id)
        revisions = [_made_up(asked, 0, max(rewards) + better, criteria, fulfilled=len(criteria))]
    members = stages.selection(task, attempts, revisions, {}, 0)
    group = Group(
        id=task.id, task=task, prompt_ids=(), attempts=tuple(attempts), revisions=tuple(revisions),
        members=tuple(members),
    )  # fmt: skip
    [advantages] = stages.advantages([group], 0)
    return advantages


def _made_up(
    request: SampleRequest, index: int, reward: float, criteria: Sequence[Criterion], *, fulfilled: int
) -> Judged:
    rollout = Rollout.answering(request, index, token_ids=(), logprobs=())
    verdicts = tuple(Verdict(criterion_id=one.id, met=i < fulfilled) for i, one in enumerate(criteria))
    return Judged(
        rollout=rollout, judgement=Judgement(rollout_id=rollout.id, verdicts=verdicts, reward=reward)
    )
