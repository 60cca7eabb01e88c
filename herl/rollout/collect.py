"""Stage 8: collect() runs stages 2 to 7 for a batch of prompts, as straight-line code.

    prompts -> attempts -> verdicts -> revision prompts -> revisions -> verdicts
            -> bonus, answers from the memory, selection -> advantages -> experiences

This is the only place where the stages meet. It knows their interfaces, not their classes. With several
processes, sampling and judging are shared out by prompts; all else is the same on every rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from herl.clock import PhaseClock
from herl.distributed import gather
from herl.rollout.render import render_all
from herl.rollout.stages import Stages, TrainingContext
from herl.rollout.streaming import sample_and_judge, takes_follow_ups
from herl.seeds import derive_seed
from herl.types import (
    Experience,
    Judged,
    Member,
    Rollout,
    SampleRequest,
    Task,
)

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Everything that happened to one prompt in one step."""

    task: Task
    prompt_ids: tuple[int, ...]
    attempts: tuple[Judged, ...]
    revisions: tuple[Judged, ...] = ()
    replayed: tuple[Judged, ...] = ()
    """From the memory: candidates like revisions, sampled for an earlier batch."""
    members: tuple[Member, ...] = ()
    """Attempts that could be judged, after revisions have taken their places."""
    advantages: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What collect() returns."""

    groups: tuple[Group, ...]
    experiences: tuple[Experience, ...]
    """What to train on. Groups without signal are not in it."""
    dropped: Mapping[str, int]
    """Prompts over `max_prompt_tokens`: {"prompts": ..., "revision_prompts": ...}."""


def collect(
    tasks: Sequence[Task], stages: Stages, key: Sequence[int | str], clock: PhaseClock | None = None
) -> Collection:
    """Samples, judges, revises and compares answers to these prompts.

    Args:
        tasks: The prompts of one rollout batch.
        stages: The components.
        key: Where this batch belongs, e.g. (seed, epoch, batch): all randomness is a hash of it.
        clock: Adds up the time under "sample", "judge" (where it was waited for) and "revise".

    Raises:
        AbstentionLimit: the judge fails too often.
        SamplerError: an answer could not be sampled.
    """
    plan = stages.plan
    clock = PhaseClock() if clock is None else clock
    prompts, over_long = render_all(stages, {task.id: task.messages for task in tasks})
    requests = [
        SampleRequest(
            task_id=task.id,
            group_id=_name(*key, task.id),
            prompt_ids=prompts[task.id],
            n=plan.attempts_per_prompt,
            sampling=plan.attempt,
            seed=derive_seed(*key, task.id, "attempt"),
        )
        for task in tasks
        if task.id in prompts
    ]
    answers, revisions_over_long = _attempt_and_revise(tasks, requests, stages, key, clock)
    attempts = {id: [one for one in answers[id] if one.rollout.origin == "policy"] for id in answers}
    revisions = {id: [one for one in answers[id] if one.rollout.origin == "hindsight"] for id in answers}

    replayed = {
        task.id: stages.replay.recall(task.id, _name(*key, task.id)) if _rewarded(attempts[task.id]) else []
        for task in tasks
    }
    members = {
        task.id: _members(
            stages, attempts[task.id], revisions[task.id], replayed[task.id], derive_seed(*key, task.id)
        )
        for task in tasks
    }
    for task in tasks:
        stages.replay.keep(task.id, members[task.id], _rewarded(answers[task.id]))
    advantages = stages.advantages(
        [[member.total for member in members[task.id]] for task in tasks],
        [[member.origin == "policy" for member in members[task.id]] for task in tasks],
    )
    groups = [
        Group(
            task=task,
            prompt_ids=prompts[task.id],
            attempts=tuple(attempts[task.id]),
            revisions=tuple(revisions[task.id]),
            replayed=tuple(replayed[task.id]),
            members=tuple(members[task.id]),
            advantages=tuple(values),
        )
        for task, values in zip(tasks, advantages, strict=True)
        if task.id in prompts
    ]
    return Collection(
        groups=tuple(groups),
        experiences=tuple(e for group in groups for e in _experiences(group, plan.training_context)),
        dropped={"prompts": over_long, "revision_prompts": revisions_over_long},
    )


def _attempt_and_revise(
    tasks: Sequence[Task],
    requests: Sequence[SampleRequest],
    stages: Stages,
    key: Sequence[int | str],
    clock: PhaseClock,
) -> tuple[dict[str, list[Judged]], int]:
    """Stages 2 to 4: judged attempts and revisions by task, and the number of over-long revision prompts.

    Each group is revised as soon as it is judged where the sampler takes requests while it works, else all
    groups are once the last one is.
    """
    reviser = _Reviser(stages, key)
    if takes_follow_ups(stages.sampler):
        answers = sample_and_judge(
            stages.sampler, stages.judge_runner, tasks, requests, clock, follow_up=reviser.requests
        )
        return answers, sum(gather(reviser.over_long))  # each rank revises the prompts that it sampled
    answers = sample_and_judge(stages.sampler, stages.judge_runner, tasks, requests, clock)
    requests = [request for task in tasks for request in reviser.requests(task, answers[task.id])]
    revised = sample_and_judge(stages.sampler, stages.judge_runner, tasks, requests, clock, "revise")
    return {task.id: answers[task.id] + revised[task.id] for task in tasks}, reviser.over_long


class _Reviser:
    """Stage 4 for one batch: a judged group -> requests for revisions. Counts prompts that are too long."""

    def __init__(self, stages: Stages, key: Sequence[int | str]) -> None:
        self.over_long = 0
        self._stages = stages
        self._key = key

    def requests(self, task: Task, attempts: Sequence[Judged]) -> list[SampleRequest]:
        """Returns a request for each attempt that is to be revised."""
        hindsights = {one.parent.id: one for one in self._stages.hindsight.build(task, attempts)}
        prompts, over_long = render_all(self._stages, {id: one.messages for id, one in hindsights.items()})
        self.over_long += over_long
        return [self._request(hindsights[id].parent, prompt_ids) for id, prompt_ids in prompts.items()]

    def _request(self, parent: Rollout, prompt_ids: tuple[int, ...]) -> SampleRequest:
        return SampleRequest(
            task_id=parent.task_id,
            group_id=parent.group_id,
            prompt_ids=prompt_ids,
            n=self._stages.plan.revisions_per_candidate,
            sampling=self._stages.plan.revision,
            seed=derive_seed(*self._key, parent.id, "revision"),
            parent_id=parent.id,
        )


def _rewarded(answers: Sequence[Judged]) -> list[Judged]:
    return [judged for judged in answers if judged.judgement.reward is not None]


def _members(
    stages: Stages,
    attempts: Sequence[Judged],
    revisions: Sequence[Judged],
    replayed: Sequence[Judged],
    seed: int,
) -> list[Member]:
    """Pays bonuses and lets revisions in, new and replayed. Answers that could not be judged leave here."""
    own, revised = _rewarded(attempts), _rewarded(revisions)
    by_parent: defaultdict[str | None, list[Judged]] = defaultdict(list)
    for revision in revised:
        by_parent[revision.rollout.parent_id].append(revision)
    bonuses = {
        attempt.rollout.id: stages.bonus.bonus(attempt, by_parent[attempt.rollout.id])
        for attempt in own
        if attempt.rollout.id in by_parent
    }
    return stages.selection(own, [*revised, *replayed], bonuses, seed)


def _experiences(group: Group, training_context: TrainingContext) -> list[Experience]:
    if not any(group.advantages):
        return []
    experiences = []
    for member, advantage in zip(group.members, group.advantages, strict=True):
        rollout = member.judged.rollout
        contexts = {"original": group.prompt_ids, "hindsight": rollout.prompt_ids}
        names = ["original", "hindsight"] if training_context == "both" else [training_context]
        for context_ids in dict.fromkeys(contexts[name] for name in names):
            experiences.append(
                Experience(
                    rollout=rollout,
                    judgement=member.judged.judgement,
                    reward=member.reward,
                    bonus=member.bonus,
                    advantage=advantage,
                    context_ids=context_ids,
                )
            )
    return experiences


def _name(*parts: int | str) -> str:
    return ":".join(map(str, parts))
