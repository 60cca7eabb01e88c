"""Stage 8: collect() runs stages 2 to 7 for a batch of prompts, as straight-line code.

    prompts -> attempts -> verdicts -> revision prompts -> revisions -> verdicts
            -> bonus, selection -> advantages -> experiences

This is the only place where the stages meet. It knows their interfaces, not their classes. With several
processes, sampling and judging are shared out by prompts; all else is the same on every rank.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Literal

from herl.bonus import BonusReward, NoBonus
from herl.clock import PhaseClock
from herl.distributed import gather_results, rank, world_size
from herl.errors import ConfigError
from herl.hindsight import HindsightBuilder, NoHindsight
from herl.judge import JudgeDesk
from herl.sampler import Sampler
from herl.seeds import derive_seed
from herl.types import (
    Experience,
    Hindsight,
    Judged,
    Member,
    Message,
    SampleRequest,
    Sampling,
    Task,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainingContext = Literal["original", "hindsight", "both"]
Selection = Callable[..., list[Member]]
"""`herl.selection.form_group` with its options bound: (attempts, revisions, bonuses, seed) -> members."""
Advantages = Callable[..., list[list[float]]]
"""`herl.advantages.group_advantages` with its options bound: (rewards, own) -> advantages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """How many answers are drawn per prompt, how, and what they are trained under.

    Args:
        attempts_per_prompt: Attempts in a group (n).
        revisions_per_candidate: Revisions of each attempt that is revised.
        attempt: How attempts are drawn. The trainer computes log-probs at its temperature.
        revision: How revisions are drawn.
        training_context: The context that revisions are trained under: the `original` prompt, the
            `hindsight` prompt that they were sampled under, or `both`.
        max_prompt_tokens: Longer prompts and revision prompts are dropped and counted, never cut.
    """

    attempts_per_prompt: int = 8
    revisions_per_candidate: int = 1
    attempt: Sampling = field(default_factory=Sampling)
    revision: Sampling = field(default_factory=Sampling)
    training_context: TrainingContext = "original"
    max_prompt_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.attempts_per_prompt < 1 or self.revisions_per_candidate < 1:
            raise ConfigError(
                "rollout: expected attempts_per_prompt and revisions_per_candidate of at least 1, "
                f"got {self.attempts_per_prompt} and {self.revisions_per_candidate}"
            )
        for name, sampling in (("attempt", self.attempt), ("revision", self.revision)):
            if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.max_new_tokens < 1:
                raise ConfigError(
                    f"rollout.{name}: expected temperature >= 0, top_p in (0, 1] and max_new_tokens >= 1, "
                    f"got {sampling.temperature}, {sampling.top_p} and {sampling.max_new_tokens}"
                )
        if self.attempt.temperature == 0:
            raise ConfigError(
                "rollout.attempt.temperature: expected a number above 0 (attempts must differ to be "
                f"compared), got {self.attempt.temperature}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The components that collect() runs, as ordinary objects."""

    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    desk: JudgeDesk
    plan: RolloutPlan
    selection: Selection
    advantages: Advantages
    hindsight: HindsightBuilder = field(default_factory=NoHindsight)
    bonus: BonusReward = field(default_factory=NoBonus)

    def __post_init__(self) -> None:
        self.desk.needs_verdicts = self.hindsight.needs_verdicts
        if self.desk.judge.holistic and self.hindsight.needs_verdicts:
            raise ConfigError(
                "judge: expected verdicts on each criterion, which hindsight is made of, got a holistic "
                "judge with one score for the whole answer: use algorithm=grpo, or another judge.mode"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Everything that happened to one prompt in one step."""

    task: Task
    prompt_ids: tuple[int, ...]
    attempts: tuple[Judged, ...]
    revisions: tuple[Judged, ...] = ()
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
    seconds: Mapping[str, float]
    """Wall time: {"sample": ..., "judge": ..., "revise": ...}. Judging counts where it was waited for."""


def collect(tasks: Sequence[Task], stages: Stages, key: Sequence[int | str]) -> Collection:
    """Samples, judges, revises and compares answers to these prompts.

    Args:
        tasks: The prompts of one rollout batch.
        stages: The components.
        key: Where this batch belongs, e.g. (seed, epoch, batch): all randomness is a hash of it.

    Raises:
        AbstentionLimit: the judge fails too often.
        SamplerError: an answer could not be sampled.
    """
    plan = stages.plan
    clock = PhaseClock()
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
    attempts = sample_and_judge(stages, tasks, requests, clock, "sample")

    hindsights = [h for task in tasks for h in stages.hindsight.build(task, attempts[task.id])]
    revision_prompts, revision_over_long = render_all(
        stages, {hindsight.parent.id: hindsight.messages for hindsight in hindsights}
    )
    requests = [
        _revision_request(plan, hindsight, revision_prompts[hindsight.parent.id], key)
        for hindsight in hindsights
        if hindsight.parent.id in revision_prompts
    ]
    revisions = sample_and_judge(stages, tasks, requests, clock, "revise")

    members = {
        task.id: _members(stages, attempts[task.id], revisions[task.id], derive_seed(*key, task.id))
        for task in tasks
    }
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
            members=tuple(members[task.id]),
            advantages=tuple(values),
        )
        for task, values in zip(tasks, advantages, strict=True)
        if task.id in prompts
    ]
    return Collection(
        groups=tuple(groups),
        experiences=tuple(e for group in groups for e in _experiences(group, plan.training_context)),
        dropped={"prompts": over_long, "revision_prompts": revision_over_long},
        seconds=clock.seconds,
    )


def sample_and_judge(
    stages: Stages,
    tasks: Sequence[Task],
    requests: Sequence[SampleRequest],
    clock: PhaseClock | None = None,
    phase: str = "sample",
) -> dict[str, list[Judged]]:
    """Returns the judged answers of each task, in an order that does not depend on when they finished.

    An answer goes to the judge as soon as it is there, while the others are still being sampled. Each
    engine of the run takes its share of the requests; every rank gets all answers back.

    Raises:
        AbstentionLimit: the judge fails too often.
        SamplerError: an answer could not be sampled.
    """
    clock = clock or PhaseClock()
    by_id = {task.id: task for task in tasks}
    engine, place = divmod(rank(), stages.sampler.ranks_per_engine)
    share = requests[engine :: world_size() // stages.sampler.ranks_per_engine]

    def work() -> list[Judged]:
        with clock.time(phase):
            rollouts = stages.sampler.generate(share)
            if place > 0:  # helps its engine to compute what the engine's first rank judges
                deque(rollouts, maxlen=0)
                return []
            futures = [stages.desk.submit(by_id[rollout.task_id], rollout) for rollout in rollouts]
        with clock.time("judge"):
            return [future.result() for future in futures]

    parts = gather_results(work)
    order = {rollout_id: place for place, rollout_id in enumerate(_expected_ids(requests))}
    judged = sorted(chain.from_iterable(parts), key=lambda one: order[one.rollout.id])
    stages.desk.watch(judged)
    by_task: dict[str, list[Judged]] = {task.id: [] for task in tasks}
    for one in judged:
        by_task[one.rollout.task_id].append(one)
    return by_task


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Returns the token ids of a conversation, ready for the assistant's turn, by the chat template."""
    ids = tokenizer.apply_chat_template(
        [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
    )
    return tuple(ids)


def render_all(
    stages: Stages, conversations: Mapping[str, Sequence[Message]]
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Renders each conversation once; returns those that fit and the number of those that do not."""
    rendered = {key: render(stages.tokenizer, messages) for key, messages in conversations.items()}
    fitting = {key: ids for key, ids in rendered.items() if len(ids) <= stages.plan.max_prompt_tokens}
    return fitting, len(rendered) - len(fitting)


def _revision_request(
    plan: RolloutPlan, hindsight: Hindsight, prompt_ids: tuple[int, ...], key: Sequence[int | str]
) -> SampleRequest:
    parent = hindsight.parent
    return SampleRequest(
        task_id=parent.task_id,
        group_id=parent.group_id,
        prompt_ids=prompt_ids,
        n=plan.revisions_per_candidate,
        sampling=plan.revision,
        seed=derive_seed(*key, parent.id, "revision"),
        parent_id=parent.id,
    )


def _members(
    stages: Stages, attempts: Sequence[Judged], revisions: Sequence[Judged], seed: int
) -> list[Member]:
    """Pays bonuses and lets revisions in. Answers that could not be judged leave the group here."""
    own = [judged for judged in attempts if judged.judgement.reward is not None]
    revised = [judged for judged in revisions if judged.judgement.reward is not None]
    by_parent: defaultdict[str | None, list[Judged]] = defaultdict(list)
    for revision in revised:
        by_parent[revision.rollout.parent_id].append(revision)
    bonuses = {
        attempt.rollout.id: stages.bonus.bonus(attempt, by_parent[attempt.rollout.id])
        for attempt in own
        if attempt.rollout.id in by_parent
    }
    return stages.selection(own, revised, bonuses, seed)


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


def _expected_ids(requests: Sequence[SampleRequest]) -> list[str]:
    return [
        f"{request.parent_id or request.group_id}/{index}"
        for request in requests
        for index in range(request.n)
    ]


def _name(*parts: int | str) -> str:
    return ":".join(map(str, parts))
