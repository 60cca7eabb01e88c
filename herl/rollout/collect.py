"""Stage 8: collect() runs stages 2 to 7 for a batch of prompts.

    open_groups -> attempt_and_revise -> settle -> compare -> experiences
                    2, 3, 4, 3, ...       5, 6      7

This is the only place where the stages meet. It knows their interfaces, not their classes. With several
ranks, sampling and judging are divided; every rank does all the rest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from herl.clock import PhaseClock
from herl.rollout.exchange import collector_paused
from herl.rollout.requests import (
    RevisionRequests,
    attempt_request,
    open_groups,
    revision_requests,
    told_requests,
)
from herl.rollout.stages import RolloutPlan, Stages, TrainingContext
from herl.rollout.streaming import sample_and_judge
from herl.rollout.teacher_contexts import teacher_contexts
from herl.seeds import derive_seed
from herl.types import Experience, Group, Judged, Member, Rollout, Task

Key = Sequence[int | str]
"""Identifies a batch, e.g. (seed, epoch, batch): all randomness is a hash of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """The result of collect()."""

    groups: tuple[Group, ...]
    """One for each prompt that is not too long. Groups that a refill replaced are among them."""
    experiences: tuple[Experience, ...]
    """The training data, without groups that carry no signal unless `RolloutPlan.keep_flat_groups`."""
    dropped: Mapping[str, int]
    """Counts of prompts over `max_prompt_tokens`: {"prompts": ..., "revision_prompts": ...}, and
    "teacher_prompts", the attempts without a teacher for that reason, if there are any."""
    refilled: int | None = None
    """How many of the groups were drawn to replace others that carry no signal; None without a refill."""
    skipped: Mapping[str, int] | None = None
    """Counts of prompts that were skipped as "solved" and "hopeless"; None if none may be."""
    episodes: bool = False
    """Whether there is an environment that replies, so that an answer may take several turns."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase, if the batch was drawn beside the update on the one before (`herl.rollout.ahead`)."""


def collect(tasks: Sequence[Task], stages: Stages, key: Key, clock: PhaseClock | None = None) -> Collection:
    """Samples, judges, revises and compares answers to these prompts.

    With `RolloutPlan.skip_above` or `skip_below`, prompts that are solved or hopeless are left out. With
    `RolloutPlan.refill`, further prompts follow for them, and for groups without signal.

    Args:
        tasks: The prompts of one rollout batch.
        stages: The components.
        key: Identifies the batch.
        clock: Adds up the time as "sample", "judge" (waiting for the judge) and "revise".

    Raises:
        AbstentionLimit: the judge fails too often.
        SamplerError: an answer could not be sampled.
    """
    batch = _settled_batch(tasks, stages, key, clock or PhaseClock())
    groups = compare(batch.groups, stages, derive_seed(*key, "advantages"))
    taught, teacher_over_long = teacher_contexts(groups, stages)
    return Collection(
        groups=tuple(groups),
        experiences=experiences_of(groups, stages.plan, taught),
        dropped=batch.dropped | ({"teacher_prompts": teacher_over_long} if teacher_over_long else {}),
        refilled=batch.refilled if stages.plan.refill else None,
        skipped=batch.skipped if stages.plan.skips else None,
        episodes=stages.environment_runner.environment.replies,
    )


@dataclass(slots=True, kw_only=True)
class _Batch:
    """A batch before its advantages; the fields are those of a `Collection`."""

    groups: list[Group]
    dropped: dict[str, int]
    skipped: dict[str, int]
    refilled: int = 0


def _settled_batch(tasks: Sequence[Task], stages: Stages, key: Key, clock: PhaseClock) -> _Batch:
    """Stages 2 to 6, for as many rounds as there are prompts to replace."""
    drawn = {task.id for task in tasks}
    tasks, skipped = _not_skipped(tasks, stages, key)
    groups, over_long = _settled(tasks, stages, key, clock)
    refilled = 0
    for number in range(stages.plan.refill):
        flat = _without_signal(groups, stages, key)
        missing = flat + skipped.total() - refilled  # as many have been replaced already
        further = stages.refill.draw(missing, (*key, number), drawn) if missing > 0 else []
        if not further:
            break
        drawn |= {task.id for task in further}
        further, _ = _not_skipped(further, stages, (*key, number))
        more, more_over_long = _settled(further, stages, key, clock)
        groups = [*groups, *more]
        over_long.update(more_over_long)
        refilled += len(more)
    if stages.plan.skips:
        stages.difficulty.note(groups)
    return _Batch(groups=groups, dropped=dict(over_long), skipped=dict(skipped), refilled=refilled)


def _not_skipped(tasks: Sequence[Task], stages: Stages, key: Key) -> tuple[list[Task], Counter[str]]:
    """Returns the prompts that are neither solved nor hopeless, and the counts of the others."""
    plan = stages.plan
    if not plan.skips:
        return list(tasks), Counter()
    return stages.difficulty.chosen(
        tasks, key, above=plan.skip_above, below=plan.skip_below, chance=plan.skip_chance
    )


def _settled(
    tasks: Sequence[Task], stages: Stages, key: Key, clock: PhaseClock
) -> tuple[list[Group], Counter[str]]:
    """Stages 2 to 6. Returns the groups of these prompts, and the counts of prompts that were too long."""
    opened, over_long = open_groups(tasks, stages, ":".join(map(str, key)))
    answered, revisions_over_long = attempt_and_revise(opened, stages, key, clock)
    dropped = Counter({"prompts": over_long, "revision_prompts": revisions_over_long})
    return settle(answered, stages, key), dropped


def _without_signal(groups: Sequence[Group], stages: Stages, key: Key) -> int:
    """Returns how many of these groups carry no signal."""
    compared = compare(groups, stages, derive_seed(*key, "advantages"))
    return sum(not any(group.advantages) for group in compared)


def attempt_and_revise(
    groups: Sequence[Group], stages: Stages, key: Key, clock: PhaseClock
) -> tuple[list[Group], int]:
    """Stages 2 to 4: adds judged attempts and revisions.

    A group is revised as soon as it is judged, if the sampler accepts requests while it works. Otherwise all
    groups are revised after the last one is judged, and their revisions are dealt to the engines once more. A
    builder that tells the rubric needs neither: its answers are sampled together with the attempts.

    Returns:
        The groups, and the number of revision prompts that were too long.
    """
    requests = [
        attempt_request(
            group,
            stages.plan.attempts_per_prompt,
            stages.plan.attempt,
            derive_seed(*key, group.task.id, "attempt"),
        )
        for group in groups
    ]
    sample = partial(sample_and_judge, stages.sampler, stages.judge_runner, stages.player)
    revise = partial(_revise, stages=stages, key=key)
    told = told_requests(groups, stages, key)
    follows = stages.hindsight.revises and not stages.hindsight.tells
    first = sample(groups, [*requests, *told.requests], clock, follow_up=revise if follows else None)
    groups = _grown(groups, first.judged)
    waiting = [revise(group) for group in groups if group.id not in first.followed_up]
    over_long = told.over_long + first.over_long + sum(asked.over_long for asked in waiting)
    if requests := [request for asked in waiting for request in asked.requests]:
        groups = _grown(groups, sample(groups, requests, clock, "revise").judged)
    return groups, over_long


@collector_paused()
def settle(groups: Sequence[Group], stages: Stages, key: Key) -> list[Group]:
    """Stages 5 and 6: adds replayed answers, pays bonuses, and selects the members of each group."""
    groups = [_with_replayed(group, stages) for group in groups]
    settled = [replace(group, members=tuple(_members(group, stages, key))) for group in groups]
    for group in settled:
        answers = _with_reward([*group.attempts, *group.revisions])
        stages.replay.keep(group.task.id, group.members, answers)
    return settled


@collector_paused()
def compare(groups: Sequence[Group], stages: Stages, seed: int) -> list[Group]:
    """Stage 7: adds the advantages.

    Whether a group carries a signal is decided on the rewards without the bonus (`bonus.in_flat_groups`).
    """
    paid = [any(member.bonus for member in group.members) for group in groups]
    alone = [False] * len(groups)
    if any(paid):
        unpaid = stages.advantages([_without_bonus(group) for group in groups], seed)
        alone = [has_bonus and not any(values) for has_bonus, values in zip(paid, unpaid, strict=True)]
    # Without the bonus such a group stays out of a scale over the whole batch, too.
    compared = [
        _without_bonus(group) if only and not stages.bonus.in_flat_groups else group
        for group, only in zip(groups, alone, strict=True)
    ]
    return [
        replace(group, advantages=tuple(map(float, values)), bonus_alone=only)  # a function may use NumPy's
        for group, values, only in zip(groups, stages.advantages(compared, seed), alone, strict=True)
    ]


def _without_bonus(group: Group) -> Group:
    return replace(group, members=tuple(replace(member, bonus=0.0) for member in group.members))


def _revise(group: Group, stages: Stages, key: Key) -> RevisionRequests:
    if stages.hindsight.tells:
        return RevisionRequests()
    n = stages.plan.revisions_per_candidate
    return revision_requests(group.task, group.attempts, stages, n=n, key=key)


def _grown(groups: Sequence[Group], answers: Sequence[Judged]) -> list[Group]:
    """Adds answers to their groups, in the given order."""
    answers_of: defaultdict[str, list[Judged]] = defaultdict(list)
    for answer in answers:
        answers_of[answer.rollout.group_id].append(answer)
    return [
        replace(
            group,
            attempts=(
                *group.attempts,
                *(answer for answer in answers_of[group.id] if answer.rollout.origin == "policy"),
            ),
            revisions=(
                *group.revisions,
                *(answer for answer in answers_of[group.id] if answer.rollout.origin == "hindsight"),
            ),
        )
        for group in groups
    ]


def _with_reward(answers: Sequence[Judged]) -> list[Judged]:
    return [answer for answer in answers if answer.has_reward]


def _with_replayed(group: Group, stages: Stages) -> Group:
    if not _with_reward(group.attempts):
        return group  # nothing to compare them with
    return replace(group, replayed=tuple(stages.replay.recall(group.task.id, group.id)))


def _members(group: Group, stages: Stages, key: Key) -> list[Member]:
    """Pays bonuses and admits revisions, new and replayed. Answers that could not be judged are dropped."""
    attempts, revisions = _with_reward(group.attempts), _with_reward(group.revisions)
    revisions_of: defaultdict[str, list[Judged]] = defaultdict(list)
    for revision in revisions:
        if revision.rollout.parent_id is not None:
            revisions_of[revision.rollout.parent_id].append(revision)
    bonuses = {
        draft.rollout.id: float(stages.bonus.bonus(draft, revisions_of[draft.rollout.id]))
        for draft in attempts
        if draft.rollout.id in revisions_of
    }
    candidates = [*revisions, *group.replayed]
    return stages.selection(group.task, attempts, candidates, bonuses, derive_seed(*key, group.task.id))


@collector_paused()
def experiences_of(
    groups: Sequence[Group], plan: RolloutPlan, taught: Mapping[str, tuple[int, ...]]
) -> tuple[Experience, ...]:
    """Returns the training data of a batch.

    Args:
        groups: The groups, with their advantages.
        plan: The contexts that answers are trained under, and which answers are left out.
        taught: The teacher's contexts, by rollout id (`teacher_contexts`).
    """
    return tuple(e for group in groups for e in _experiences(group, plan, taught))


def _experiences(group: Group, plan: RolloutPlan, taught: Mapping[str, tuple[int, ...]]) -> list[Experience]:
    """Returns the training data of a group. If it carries no signal, only its taught attempts, if any.

    With `RolloutPlan.mask_truncated`, answers that were cut off are left out.
    """
    flat = not any(group.advantages) and not plan.keep_flat_groups
    experiences = []
    for member, advantage in zip(group.members, group.advantages, strict=True):
        rollout = member.judged.rollout
        if flat and rollout.id not in taught:
            continue
        if plan.mask_truncated and rollout.cut_off:
            continue
        for context_ids in _contexts(group, rollout, plan.training_context):
            experiences.append(
                Experience(
                    rollout=rollout,
                    judgement=member.judged.judgement,
                    reward=member.reward,
                    bonus=member.bonus,
                    advantage=advantage,
                    context_ids=context_ids,
                    teacher_ids=taught.get(rollout.id, ()),
                )
            )
    return experiences


def _contexts(group: Group, rollout: Rollout, training_context: TrainingContext) -> list[tuple[int, ...]]:
    """The prompts under which an answer is trained, each once."""
    if training_context == "original":
        return [group.prompt_ids]
    if training_context == "hindsight" or rollout.prompt_ids == group.prompt_ids:
        return [rollout.prompt_ids]
    return [group.prompt_ids, rollout.prompt_ids]
