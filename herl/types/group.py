"""All answers to one prompt, and what is trained on."""

from __future__ import annotations

from dataclasses import dataclass

from herl.types.answer import Judged, Judgement, Origin, Rollout
from herl.types.task import Criterion, Message, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindsight:
    """A failed attempt turned into the prompt of its revision."""

    parent: Rollout
    messages: tuple[Message, ...]
    """The revision prompt, as a conversation for the chat template."""
    met: tuple[Criterion, ...]
    missed: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An answer whose reward is compared with the others' in its group."""

    judged: Judged
    reward: float
    """The judge's reward, in the units of the rubric's aggregation."""
    bonus: float = 0.0
    """Added to `reward` for attempts that were revised."""

    @property
    def total(self) -> float:
        return self.reward + self.bonus

    @property
    def origin(self) -> Origin:
        return self.judged.rollout.origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One prompt in one step. It is opened with the prompt and grows stage by stage."""

    id: str
    task: Task
    prompt_ids: tuple[int, ...]
    attempts: tuple[Judged, ...] = ()
    """In the order of their indices."""
    revisions: tuple[Judged, ...] = ()
    """In the order of their drafts, then of their indices. Those without a draft come last."""
    replayed: tuple[Judged, ...] = ()
    """Answers from the replay buffer, sampled for an earlier batch. Selection treats them like revisions."""
    members: tuple[Member, ...] = ()
    """Attempts that could be judged, after revisions have taken their places."""
    advantages: tuple[float, ...] = ()
    """One for each member."""
    bonus_alone: bool = False
    """Whether only the bonus tells the members apart: their rewards alone carry no signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """Training data: an answer, the context that it is trained under, and its advantage."""

    rollout: Rollout
    judgement: Judgement
    reward: float
    bonus: float
    advantage: float
    context_ids: tuple[int, ...]
    """Tokens before the answer in training. They never carry loss. For a revision this may be the original
    prompt, although the revision was sampled under the revision prompt."""
    teacher_ids: tuple[int, ...] = ()
    """The context under which the told policy scores the answer (`herl.hindsight.teacher`); empty if it does
    not."""

    @property
    def origin(self) -> Origin:
        return self.rollout.origin
