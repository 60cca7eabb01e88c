"""Stage 8: collect() runs stages 2 to 7 for a batch of prompts, as straight-line code.

    prompts -> attempts -> verdicts -> revision prompts -> revisions -> verdicts
            -> bonus, answers from the memory, selection -> advantages -> experiences

This is the only place where the stages meet. It knows their interfaces, not their classes. With several
processes, sampling and judging are shared out by prompts; all else is the same on every rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from herl.bonus import BonusReward, NoBonus
from herl.clock import PhaseClock
from herl.distributed import gather
from herl.errors import ConfigError
from herl.hindsight import HindsightBuilder, NoHindsight
from herl.judge import JudgeDesk
from herl.memory import Memory, NoMemory
from herl.rollouts import sample_and_judge, takes_follow_ups
from herl.sampler import Sampler
from herl.seeds import derive_seed
from herl.types import (
    Experience,
    Judged,
    Judgement,
    Member,
    Message,
    Rollout,
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
        heldout: How held-out prompts are answered; None for like `attempt`.
        training_context: The context that revisions are trained under: the `original` prompt, the
            `hindsight` prompt that they were sampled under, or `both`.
        max_prompt_tokens: Longer prompts and revision prompts are dropped and counted, never cut; so are
            those that leave no room for the longest answer in the model.
    """

    attempts_per_prompt: int = 8
    revisions_per_candidate: int = 1
    attempt: Sampling = field(default_factory=Sampling)
    revision: Sampling = field(default_factory=Sampling)
    heldout: Sampling | None = None
    training_context: TrainingContext = "original"
    max_prompt_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.attempts_per_prompt < 1 or self.revisions_per_candidate < 1:
            raise ConfigError(
                "rollout: expected attempts_per_prompt and revisions_per_candidate of at least 1, "
                f"got {self.attempts_per_prompt} and {self.revisions_per_candidate}"
            )
        for name, sampling in (
            ("attempt", self.attempt),
            ("revision", self.revision),
            ("heldout", self.heldout or self.attempt),
        ):
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

    def within(self, most: int | None) -> RolloutPlan:
        """Returns the plan with prompts so short that every answer has room in the model.

        Args:
            most: Tokens of a prompt with its answer that the model takes; None for any.

        Raises:
            ConfigError: an answer alone may fill it.
        """
        if most is None:
            return self
        kinds = {"attempt": self.attempt, "revision": self.revision, "heldout": self.heldout or self.attempt}
        name, longest = max(kinds.items(), key=lambda kind: kind[1].max_new_tokens)
        if longest.max_new_tokens >= most:
            raise ConfigError(
                f"rollout.{name}.max_new_tokens: expected less than the {most} tokens that the model takes "
                f"of a prompt with its answer, got {longest.max_new_tokens}"
            )
        return replace(self, max_prompt_tokens=min(self.max_prompt_tokens, most - longest.max_new_tokens))


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
    memory: Memory = field(default_factory=NoMemory)

    def __post_init__(self) -> None:
        self.desk.needs_verdicts = self.hindsight.needs_verdicts
        if self.memory.needs_revisions and isinstance(self.hindsight, NoHindsight):
            raise ConfigError("memory.of: expected 'best' without hindsight, got 'revisions': there are none")
        if self.plan.attempts_per_prompt == 1 and isinstance(self.hindsight, NoHindsight):
            raise ConfigError(
                "rollout.attempts_per_prompt: expected at least 2 without hindsight, got 1: an answer "
                "alone has nothing to be better than"
            )
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
    recalled: tuple[Judged, ...] = ()
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

    recalled = {
        task.id: stages.memory.recall(task.id, _name(*key, task.id)) if _rewarded(attempts[task.id]) else []
        for task in tasks
    }
    members = {
        task.id: _members(
            stages, attempts[task.id], revisions[task.id], recalled[task.id], derive_seed(*key, task.id)
        )
        for task in tasks
    }
    for task in tasks:
        stages.memory.keep(task.id, members[task.id], _rewarded(answers[task.id]))
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
            recalled=tuple(recalled[task.id]),
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


def trial_advantages(stages: Stages) -> list[float]:
    """Returns the advantages of a made-up group whose attempts earn from 0 to 1: what a loss will get."""
    count = max(2, stages.plan.attempts_per_prompt)
    attempts = []
    for place in range(count):
        rollout = Rollout(
            id=f"trial/{place}",
            task_id="trial",
            group_id="trial",
            prompt_ids=(),
            token_ids=(),
            logprobs=(),
            text="",
            finish_reason="stop",
            policy_version=0,
        )
        judgement = Judgement(rollout_id=rollout.id, verdicts=(), reward=place / (count - 1))
        attempts.append(Judged(rollout=rollout, judgement=judgement))
    members = stages.selection(attempts, [], {}, 0)
    [advantages] = stages.advantages([[m.total for m in members]], [[True] * len(members)])
    return advantages


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Returns the token ids of a conversation, ready for the assistant's turn, by the chat template."""
    ids = tokenizer.apply_chat_template(
        [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
    )
    return tuple(ids)


def reading_sample(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns a conversation as the policy reads it: another one under another tokenizer or chat template."""
    said = [{"role": role, "content": "Name 2 rivers!"} for role in ("user", "assistant", "user")]
    return list(render(tokenizer, said))


def render_all(
    stages: Stages, conversations: Mapping[str, Sequence[Message]]
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Renders each conversation once; returns those that fit and the number of those that do not."""
    rendered = {key: render(stages.tokenizer, messages) for key, messages in conversations.items()}
    fitting = {key: ids for key, ids in rendered.items() if len(ids) <= stages.plan.max_prompt_tokens}
    return fitting, len(rendered) - len(fitting)


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
            stages.sampler, stages.desk, tasks, requests, clock, follow_up=reviser.requests
        )
        return answers, sum(gather(reviser.over_long))  # each rank revises the prompts that it sampled
    answers = sample_and_judge(stages.sampler, stages.desk, tasks, requests, clock)
    requests = [request for task in tasks for request in reviser.requests(task, answers[task.id])]
    revised = sample_and_judge(stages.sampler, stages.desk, tasks, requests, clock, "revise")
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
    recalled: Sequence[Judged],
    seed: int,
) -> list[Member]:
    """Pays bonuses and lets revisions in, new and recalled. Answers that could not be judged leave here."""
    own, revised = _rewarded(attempts), _rewarded(revisions)
    by_parent: defaultdict[str | None, list[Judged]] = defaultdict(list)
    for revision in revised:
        by_parent[revision.rollout.parent_id].append(revision)
    bonuses = {
        attempt.rollout.id: stages.bonus.bonus(attempt, by_parent[attempt.rollout.id])
        for attempt in own
        if attempt.rollout.id in by_parent
    }
    return stages.selection(own, [*revised, *recalled], bonuses, seed)


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
