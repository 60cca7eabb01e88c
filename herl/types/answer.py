"""An answer: what is asked of a sampler, what it sampled, and what a judge said of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from herl.types.task import Message, Task, Verdict

Origin = Literal["policy", "hindsight", "replay"]
"""An attempt, a revision, or an answer of an earlier batch that is replayed."""
FinishReason = Literal["stop", "length", "turns", "seconds", "failed"]
"""How an answer ended: by itself; cut off at a limit on tokens, turns or seconds; or by an error of the
environment, after which it cannot be judged."""
Spoken = tuple[tuple[str, str], ...]
"""Who said what, in order: ("assistant", text), ("tool lookup", text), ..."""
_BREAK = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""What a reader may take for the end of a line."""
_BLANK = rf"(?:[^\S{_BREAK}]|[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff])*"
"""White space and invisible characters within a line."""
_LABEL = re.compile(
    rf"((?:\A|[{_BREAK}]){_BLANK}[\[\uff3b\u3010\u3014])(?={_BLANK}(?:assistant|user|system|tool)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn: penalties, temperature (0 is greedy), min_p, top_k, top_p, in this order."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # all tokens
    min_p: float = 0.0
    """Share of the likeliest token's probability that a token must reach."""
    repetition_penalty: float = 1.0
    """Divides logits above 0, and multiplies those below, of tokens in the prompt or the answer so far."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token for each time that the answer has it; presence: only once."""
    stop: Sequence[str] = ()
    """Texts that end an answer, which keeps them, and whatever else the last token brought."""
    max_new_tokens: int = 256
    """Tokens, including the end token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """n answers to one prompt, given as token ids.

    Several engines may share a request: each gets a part, whose `indices` continue those of the part before.
    """

    task_id: str
    group_id: str
    """Answers to one prompt in one step form a group."""
    prompt_ids: tuple[int, ...]
    n: int
    sampling: Sampling
    seed: int
    """A hash of (seed, i) draws answer i."""
    parent_id: str | None = None
    """The rollout that is being revised."""
    told: bool = False
    """Whether the prompt shows the whole rubric: its answers are revisions without a draft."""
    first: int = 0
    """Index of the first of these answers; above 0 for a part of a request."""

    @property
    def indices(self) -> range:
        """The indices of these answers. A sampler draws answer i for each i of them."""
        return range(self.first, self.first + self.n)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool that the policy called in a turn, or tried to call."""

    name: str
    """"" if the call could not be read."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    """Why it failed, in a word: malformed, unknown, arguments, raised, timeout, died, or result (what it
    returned is neither text nor JSON); "" if it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A turn of an episode before its last: what the policy said, and the environment's reply to it."""

    text: str
    """The policy's words, without thinking."""
    end: int
    """Number of the rollout's `token_ids` up to the end of this turn."""
    reply: tuple[Message, ...]
    reply_ids: Sequence[int]
    """The tokens between this turn and the next: the reply as the chat template renders it. They were not
    sampled, so they carry no log-prob and no loss, and count as context."""
    calls: tuple[ToolCall, ...] = ()
    thinking: str = ""
    thinking_tokens: int = 0

    @property
    def replied(self) -> Spoken:
        """The reply's messages, each with who says it: "user", or "tool" with its name."""
        names = [re.sub(r"[^\w.-]+", "_", message.get("name", ""))[:64] for message in self.reply]
        return tuple(
            (" ".join(filter(None, (message["role"], name))), message["content"])
            for message, name in zip(self.reply, names, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer: exactly the ids that were sampled. Text is never tokenized again.

    An answer in more than one turn is an episode: `token_ids`, `logprobs` and whatever counts tokens hold
    the policy's turns one after the other, and `turns` says what the environment replied between them.
    """

    id: str
    task_id: str
    group_id: str
    prompt_ids: tuple[int, ...]
    token_ids: Sequence[int]
    """Everything that was sampled, thinking included. It ends with the end token only if the policy sampled
    one. A tuple, or what equals one and is kept in an array (`herl.rollout.exchange.Numbers`)."""
    logprobs: Sequence[float]
    """Log-probability, in nats, with which each of `token_ids` was drawn (see `Sampling`). Greedy answers
    have that at temperature 1."""
    text: str
    """The answer, which judges, drafts and metrics use; of an episode, its last turn. Thinking before it is
    in `thinking`."""
    finish_reason: FinishReason
    policy_version: int
    """Optimizer steps that the sampling policy had seen."""
    index: int
    """Place among the answers to the same request, from 0."""
    origin: Origin = "policy"
    parent_id: str | None = None
    """The rollout that this one revises; None for attempts, and for revisions that have no draft."""
    thinking: str = ""
    """The reasoning before the answer, without its tags; empty if the model did not think."""
    thinking_tokens: int = 0
    """How many of `token_ids` belong to the thinking, tags included; of an episode, in all turns."""
    has_answer: bool = True
    """False if thinking never ended; `text` is empty then."""
    turns: tuple[Turn, ...] = ()
    """The turns before the last one; empty for an answer in one turn."""
    last_calls: tuple[ToolCall, ...] = ()
    """The tools that the last turn called, if the episode ended before it could read their replies."""

    @property
    def told(self) -> bool:
        """Whether it is a revision without a draft: its prompt showed the whole rubric."""
        return self.origin == "hindsight" and self.parent_id is None

    @property
    def cut_off(self) -> bool:
        """Whether a limit ended it."""
        return self.finish_reason in ("length", "turns", "seconds")

    @property
    def length(self) -> int:
        """Tokens after the prompt, replies of the environment included."""
        return len(self.token_ids) + sum(len(turn.reply_ids) for turn in self.turns)

    @property
    def sequence(self) -> Sequence[int]:
        """All tokens after the prompt in their order, replies of the environment included."""
        if not self.turns:
            return self.token_ids
        ids: list[int] = []
        start = 0
        for turn in self.turns:
            ids += self.token_ids[start : turn.end]
            ids += turn.reply_ids
            start = turn.end
        return (*ids, *self.token_ids[start:])

    @property
    def parts(self) -> list[tuple[range, int]]:
        """The policy's turns: the places of each in `token_ids`, and how many of its tokens are thinking."""
        found, start, thought = [], 0, 0
        for turn in self.turns:
            found.append((range(start, turn.end), turn.thinking_tokens))
            start, thought = turn.end, thought + turn.thinking_tokens
        return [*found, (range(start, len(self.token_ids)), self.thinking_tokens - thought)]

    @property
    def transcript(self) -> str:
        """The text of all turns, each below a line "[assistant]", and of the replies, below "[tool name]" or
        "[user]"; of an answer in one turn, its text alone.

        In what the policy or the environment says, such a line gets an invisible character, so that neither
        can speak as the other.
        """
        if not self.turns:
            return self.text
        return transcribed(self.spoken)

    @property
    def spoken(self) -> Spoken:
        """What was said in all turns and replies: by "assistant", "user", or "tool" with its name."""
        said: list[tuple[str, str]] = []
        for turn in self.turns:
            said.append(("assistant", turn.text))
            said += turn.replied
        return (*said, ("assistant", self.text))

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tools that were called in all turns, in order."""
        return (*(call for turn in self.turns for call in turn.calls), *self.last_calls)

    @classmethod
    def answering(
        cls,
        request: SampleRequest,
        index: int,
        *,
        token_ids: tuple[int, ...],
        logprobs: tuple[float, ...],
        text: str = "",
        finish_reason: FinishReason = "stop",
        policy_version: int = 0,
        thinking: str = "",
        thinking_tokens: int = 0,
        has_answer: bool = True,
    ) -> Rollout:
        """Returns answer `index` to a request: an attempt, or a revision if the request has a parent or shows
        the rubric."""
        told = f"{request.group_id}/told" if request.told else request.group_id
        return cls(
            id=f"{request.parent_id or told}/{index}",
            task_id=request.task_id,
            group_id=request.group_id,
            prompt_ids=request.prompt_ids,
            token_ids=token_ids,
            logprobs=logprobs,
            text=text,
            finish_reason=finish_reason,
            policy_version=policy_version,
            index=index,
            origin="hindsight" if request.told or request.parent_id is not None else "policy",
            parent_id=request.parent_id,
            thinking=thinking,
            thinking_tokens=thinking_tokens,
            has_answer=has_answer,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """All verdicts on one answer, and the reward that they add up to."""

    rollout_id: str
    verdicts: tuple[Verdict, ...]
    reward: float | None
    """None if nothing could be judged; the answer then leaves its group."""
    usage: Mapping[str, float] = field(default_factory=dict)
    """The cost of the judgement, e.g. {"tokens": 812.0}."""


TIE = 1e-6
"""Rewards closer than this are tied (reference code)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An answer with its judgement."""

    rollout: Rollout
    judgement: Judgement

    @property
    def has_reward(self) -> bool:
        """Whether the answer could be judged."""
        return self.judgement.reward is not None

    @property
    def reward(self) -> float:
        """The judge's reward. Only an answer that could be judged has one."""
        assert self.judgement.reward is not None, "check has_reward first"
        return self.judgement.reward

    def fulfilled_count(self, task: Task) -> int:
        """Returns how many criteria of the task's rubric are fulfilled."""
        return sum(task.rubric.fulfilled(self.judgement.verdicts).values())


def transcribed(said: Spoken) -> str:
    """Returns what was said, each below a line with who said it (`Rollout.transcript`)."""
    return "\n\n".join(f"[{label}]\n{_unlabeled(text)}" for label, text in said)


def _unlabeled(text: str) -> str:
    """Returns a text in which no line looks like the label of a transcript."""
    return _LABEL.sub("\\1\u2060", text)
