"""The records that travel through the stages, in the order in which they are made.

    Task -> SampleRequest -> Rollout -> Judgement -> Hindsight -> Group -> Experience

Records are frozen: a stage returns new ones and never edits one. `origin` and `parent_id` say where a record
came from, and an order is a field; ids are opaque and never parsed. Nothing here needs torch.

The words, with TRL's / verl's terms where they have one:

    attempt          an answer that the policy samples for the plain prompt (completion / response)
    draft            the attempt that a revision starts from
    revision         an answer that was sampled with hindsight, or with the whole rubric, in its prompt
    hindsight        a revision prompt: the request, and the criteria that the draft met and missed
    rollout          one sampled answer with its token ids and log-probs (completion / response)
    group            all answers to one prompt in one step (generations of a prompt / uid)
    criterion        one weighted requirement; a rubric is all of a task's
    verdict          the judge's word on one criterion; a judgement holds those on one answer
    fulfilled        a criterion whose wish came true: met, or not met if it is undesirable
    reward           the number that the verdicts add up to (reward / token-level score)
    bonus            an addition to a draft's reward for its potential to improve
    member           an answer whose reward its group's advantages compare
    advantage        a member's reward compared with its group (advantage / advantage)
    experience       an answer with the context and the advantage that it is trained with
    policy           the model that learns; the reference is the one in the KL term (model / actor)
    refresh          moving the policy's weights to the sampler (weight sync)
    held-out         prompts that measure the policy and never train it (eval / validation)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Message = Mapping[str, str]
"""One chat message: {"role": "system" | "user" | "assistant", "content": text}."""

Origin = Literal["policy", "hindsight", "replay"]
"""An attempt, a revision, or an answer of an earlier batch that is replayed."""
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One line of a rubric."""

    id: str
    """Unique within its rubric and stable over epochs: curves by criterion use it as their name."""
    text: str
    """The text that the judge and the revision prompt read: "Says that it eats fish."."""
    weight: float = 1.0
    """Points. Negative for something that should not happen."""
    title: str = ""
    category: str = ""
    check: Mapping[str, Any] | None = None
    """How a rule judges it, e.g. {"kind": "max_words", "count": 15}. None if only a reader can tell."""
    undesirable: bool = False
    """True if *met* means that something bad happened."""
    gate: bool = False
    """True if an answer that fails it earns nothing (aggregation `gated`)."""
    named: bool = True
    """False if `id` is only a position in the rubric. It then means another criterion in another rubric, so
    curves and tables by criterion leave it out."""

    @property
    def wish(self) -> str:
        """What an answer should do: `text`, or "Avoid: " and `text`."""
        return f"Avoid: {self.text}" if self.undesirable else self.text

    def good(self, met: bool) -> bool:
        """Whether the verdict `met` fulfills the author's wish."""
        return met != self.undesirable

    def goodness(self, verdict: Verdict) -> float:
        """Returns how well the wish is fulfilled, in [0, 1]. The verdict must not be an abstention.

        >>> advert = Criterion(id="advert", text="Advertises a zoo.", weight=-4.0, undesirable=True)
        >>> advert.goodness(Verdict(criterion_id="advert", met=False))
        1.0
        >>> advert.goodness(Verdict(criterion_id="advert", met=True, score=0.75))
        0.25
        """
        value = float(bool(verdict.met)) if verdict.score is None else verdict.score
        return 1.0 - value if self.undesirable else value

    @property
    def unfulfilled(self) -> bool:
        """The verdict `met` of an answer that fulfills nothing, e.g. because it breaks its check."""
        return self.undesirable


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """The weighted criteria of one task."""

    criteria: tuple[Criterion, ...]

    def fulfilled(self, verdicts: Sequence[Verdict]) -> dict[str, bool]:
        """Returns, by criterion id, whether its wish is fulfilled. Abstentions are left out."""
        met = {verdict.criterion_id: verdict.met for verdict in verdicts}
        return {
            criterion.id: criterion.good(answer)
            for criterion in self.criteria
            if (answer := met.get(criterion.id)) is not None
        }

    def goodness(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """Returns, by criterion id, how well its wish is fulfilled. Abstentions are left out."""
        judged = {verdict.criterion_id: verdict for verdict in verdicts if verdict.met is not None}
        return {
            criterion.id: criterion.goodness(judged[criterion.id])
            for criterion in self.criteria
            if criterion.id in judged
        }

    def fulfilled_first(self, verdicts: Sequence[Verdict], others: Iterable[Sequence[Verdict]]) -> set[str]:
        """Returns the ids of criteria that an answer fulfills and none of the others does.

        Each was judged on at least one of the others; where all of them abstained, nothing is known.
        """
        known = [self.fulfilled(other) for other in others]
        mine = self.fulfilled(verdicts)
        return {
            criterion.id
            for criterion in self.criteria
            if mine.get(criterion.id)
            and any(criterion.id in other for other in known)
            and not any(other.get(criterion.id) for other in known)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One prompt of the data set, and the rubric that its answers are judged by."""

    id: str
    messages: tuple[Message, ...]
    """The conversation so far; the last message is the user's."""
    rubric: Rubric
    reference: str | None = None
    """A good answer, if the data has one. Judges may read it; the policy never does."""
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    hidden: tuple[Criterion, ...] = ()
    """Criteria that are kept from the training judge and from hindsight: only gold judges see them
    (`data.hidden_criteria`). They are not in `rubric`."""

    @property
    def whole(self) -> Task:
        """The task as gold judges see it: with its hidden criteria, after the others."""
        if not self.hidden:
            return self
        return replace(self, rubric=Rubric(criteria=(*self.rubric.criteria, *self.hidden)), hidden=())

    @property
    def request(self) -> str:
        """The text of the last user message."""
        return self.messages[-1]["content"]


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
class Rollout:
    """One sampled answer: exactly the ids that were sampled. Text is never tokenized again."""

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
    """The answer, which judges, drafts and metrics use. Thinking before it is in `thinking`."""
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
    """How many of `token_ids` belong to the thinking, tags included."""
    has_answer: bool = True
    """False if thinking never ended; `text` is empty then."""

    @property
    def told(self) -> bool:
        """Whether it is a revision without a draft: its prompt showed the whole rubric."""
        return self.origin == "hindsight" and self.parent_id is None

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
class Verdict:
    """A judge's word on one criterion."""

    criterion_id: str
    met: bool | None
    """None if the judge abstained. An abstention never counts as "not met"."""
    score: float | None = None
    """A graded verdict in [0, 1]; None if the judge does not grade."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """All verdicts on one answer, and the reward that they add up to."""

    rollout_id: str
    verdicts: tuple[Verdict, ...]
    reward: float | None
    """None if nothing could be judged; the answer then leaves its group."""
    usage: Mapping[str, float] = field(default_factory=dict)
    """The cost of the judgement, e.g. {"tokens": 812.0}."""


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
