"""A language model as the judge.

    task, answer -> questions (`PromptBuilder`) -> replies (`JudgeClient`) -> verdicts (`parse`) -> reward

A verdict abstains if the model cannot tell or cannot be reached. A failure never scores 0.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import TypeVar

from herl.errors import ConfigError, JudgeError, check_at_least
from herl.judge.aggregation import reaches, weighted
from herl.judge.base import Aggregation, Sees
from herl.judge.llm.base import ChatJudge
from herl.judge.llm.chat import Chat, ChatRequest
from herl.judge.llm.client import Limits
from herl.judge.llm.parse import ParsedVerdict, PartialReply, read_group, read_score, read_verdicts
from herl.judge.llm.prompt import GroupQuestion, Mode, PromptBuilder, Question, Shown
from herl.judge.llm.reply_cache import ReplyCache
from herl.judge.llm.scale import Scale
from herl.types import Judgement, Rollout, Task, Verdict

T = TypeVar("T")
HOLISTIC_SCALE = (1, 10)
UNDECIDED = "the judge cannot tell"


class LLMJudge(ChatJudge):
    """Asks a language model about each answer.

    Args:
        chat: The judging model: an `Endpoint`, a `VLLMChat` or a `LocalChat`.
        mode: `one_shot`, `batched`, `per_criterion`, `holistic` or `group` (`herl.judge.llm.prompt`).
        criteria_per_call: Criteria per question in `batched` mode.
        answers_per_call: Largest number of answers per question in `group` mode; null for all of a group.
        scale: null for met / not met; [0, 2] or [1, 10] for whole numbers;
            {fully: 1, partly: 0.5, "no": 0} for words, of which YAML reads no, yes, on and off as such only
            in quotes. In `holistic` mode, null means [1, 10].
        met_at: Smallest value on a graded scale, in [0, 1], at which a criterion counts as met.
        votes: Times each question is asked, with different seeds. The majority decides; on a graded scale,
            the mean.
        temperature: Of the judging model. More than one vote requires a temperature above 0.
        max_tokens: Maximum number of tokens in a reply; in `group` mode, for each answer in the question.
        reasons: Whether each verdict comes with a reason.
        reason_characters: Maximum length of a reason, if the endpoint enforces schemas; null for no limit.
        show_reference: Whether the judge sees the task's reference answer.
        sees: What it reads of an answer in several turns: the `transcript`, or the last `answer` alone.
        template: System and user text, separated by a line ---; null for the mode's default.
        limits: Limits on the requests to the model.
        cache: Stores replies; null for no cache.
        aggregation: How verdicts and weights become the reward.
    """

    def __init__(
        self,
        chat: Chat,
        mode: Mode = "one_shot",
        criteria_per_call: int = 4,
        answers_per_call: int | None = None,
        scale: list[int] | dict[str, float] | None = None,
        met_at: float = 1.0,
        votes: int = 1,
        temperature: float = 0.0,
        max_tokens: int = 2048,
        reasons: bool = True,
        reason_characters: int | None = None,
        show_reference: bool = True,
        sees: Sees = "transcript",
        template: str | None = None,
        limits: Limits | None = None,
        cache: ReplyCache | None = None,
        aggregation: Aggregation = weighted,
    ) -> None:
        super().__init__(chat, limits, cache, aggregation)
        check_at_least("judge", 1, criteria_per_call=criteria_per_call, votes=votes, max_tokens=max_tokens)
        check_at_least("judge", 1, answers_per_call=answers_per_call)
        check_at_least("judge", 0, temperature=temperature)
        if not 0.0 < met_at <= 1.0:
            raise ConfigError(f"judge.met_at: expected a number in (0, 1], got {met_at}")
        if votes > 1 and temperature == 0:
            raise ConfigError(f"judge.temperature: expected a number above 0 for {votes} votes, got 0")
        self.holistic = mode == "holistic"
        self.judges_groups = mode == "group"
        self._scale = Scale.of(HOLISTIC_SCALE if self.holistic and scale is None else scale)
        self._prompts = PromptBuilder(
            mode, self._scale, criteria_per_call, reasons, reason_characters, show_reference, template
        )
        self._sees = sees
        self._answers_per_call = answers_per_call
        self._met_at = met_at
        self._votes = votes
        self._temperature = temperature
        self._max_tokens = max_tokens

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns a verdict per criterion; a verdict that could not be obtained abstains, with its cause."""
        if self.judges_groups:
            return (await self.judge_group(task, [rollout]))[0]
        usage: Counter[str] = Counter()
        questions = list(self._prompts.questions(task, self._shown(rollout)))
        replies = await asyncio.gather(*(self._poll(task, question, usage) for question in questions))
        verdicts = [verdict for verdicts in replies for verdict in verdicts]
        if self.holistic and verdicts[0].met is not None:  # the score alone is the reward
            return Judgement(rollout_id=rollout.id, verdicts=(), reward=verdicts[0].score, usage=dict(usage))
        return self.verdict_sum(task, rollout, verdicts, dict(usage))

    async def judge_group(self, task: Task, rollouts: Sequence[Rollout]) -> list[Judgement]:
        """Returns verdicts as `judge` does, on answers that are asked about together, equal ones once.

        The verdicts on an answer that a reply leaves out abstain alone.
        """
        usage: Counter[str] = Counter()
        shown = self._prompts.in_order(task, [self._shown(rollout) for rollout in rollouts])
        step = self._answers_per_call or len(shown)
        parts = [shown[start : start + step] for start in range(0, len(shown), step)]
        polled = await asyncio.gather(*(self._poll_group(task, part, usage) for part in parts))
        found = {answer: own for part in polled for answer, own in part.items()}
        judgements = []
        for rollout in rollouts:
            verdicts, own = found[self._shown(rollout)]
            judgements.append(self.verdict_sum(task, rollout, verdicts, dict(own + usage)))
            usage = Counter()  # the first answer bears what all cost together
        return judgements

    def unanswered(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns the judgement on an attempt without an answer: the scale's lowest value if holistic."""
        judgement = super().unanswered(task, rollout)
        return replace(judgement, reward=min(self._scale.values.values())) if self.holistic else judgement

    def _shown(self, rollout: Rollout) -> Shown:
        return rollout.spoken if rollout.turns and self._sees == "transcript" else rollout.text

    async def _poll(self, task: Task, question: Question, usage: Counter[str]) -> list[Verdict]:
        """Asks a question once per vote."""
        cast, failure = await self._cast(lambda vote: self._ask(task, question, vote, usage))
        verdicts = []
        for place, criterion in enumerate(question.criteria):
            votes = [parsed[0 if self.holistic else place] for parsed in cast]
            verdicts.append(self._verdict(criterion.id, votes, failure, usage))
        return verdicts

    async def _poll_group(
        self, task: Task, answers: Sequence[Shown], usage: Counter[str]
    ) -> dict[Shown, tuple[list[Verdict], Counter[str]]]:
        """Asks about several answers, once per vote; returns the verdicts on each and its own counts."""
        question = self._prompts.group_question(task, answers)
        cast, failure = await self._cast(lambda vote: self._ask_group(task, question, vote, usage))
        found = {}
        for answer, name in question.names.items():
            given = [ballot[name] for ballot in cast]
            votes = [one for one in given if not isinstance(one, JudgeError)]
            fault = next((one for one in given if isinstance(one, JudgeError)), failure)
            own: Counter[str] = Counter()
            verdicts = [
                self._verdict(criterion.id, [one[place] for one in votes], fault, own)
                for place, criterion in enumerate(question.criteria)
            ]
            found[answer] = (verdicts, own)
        return found

    async def _cast(self, ask: Callable[[int], Awaitable[T]]) -> tuple[list[T], JudgeError | None]:
        """Asks once per vote; returns the votes that were cast, and why another was not."""
        ballots = await asyncio.gather(*(ask(vote) for vote in range(self._votes)), return_exceptions=True)
        cast: list[T] = []
        failure: JudgeError | None = None
        for ballot in ballots:
            if isinstance(ballot, JudgeError):
                failure = ballot
            elif isinstance(ballot, BaseException):
                raise ballot
            else:
                cast.append(ballot)
        return cast, failure

    async def _ask(
        self, task: Task, question: Question, vote: int, usage: Counter[str]
    ) -> list[ParsedVerdict]:
        about = ", ".join(criterion.id for criterion in question.criteria)
        return await self.client.ask(
            self._request(question, vote, self._max_tokens),
            partial(self._read, question=question),
            usage,
            f"task {task.id}: {about}",
        )

    async def _ask_group(
        self, task: Task, question: GroupQuestion, vote: int, usage: Counter[str]
    ) -> Mapping[str, list[ParsedVerdict] | JudgeError]:
        names, count = list(question.names.values()), len(question.criteria)
        try:
            return await self.client.ask(
                self._request(question, vote, self._max_tokens * len(names)),
                lambda reply: read_group(reply, names, count, self._scale, question.code),
                usage,
                f"task {task.id}: {len(names)} answers",
            )
        except PartialReply as reply:  # the fullest of all tries
            return reply.found

    def _request(self, question: Question, vote: int, max_tokens: int) -> ChatRequest:
        return ChatRequest(
            messages=question.messages,
            schema=question.schema,
            temperature=self._temperature,
            max_tokens=max_tokens,
            seed=vote,
        )

    def _read(self, reply: str, *, question: Question) -> list[ParsedVerdict]:
        if self.holistic:
            return [read_score(reply, self._scale, question.code)]
        return read_verdicts(reply, len(question.criteria), self._scale, question.code)

    def _met(self, value: float) -> bool:
        return reaches(value, self._met_at) if self._scale.graded else value > 0.5

    def _verdict(
        self,
        criterion_id: str,
        votes: Sequence[ParsedVerdict],
        failure: JudgeError | None,
        usage: Counter[str],
    ) -> Verdict:
        values = [vote.value for vote in votes if vote.value is not None]
        if not values:
            reason = str(failure) if failure else next((v.reason for v in votes if v.reason), UNDECIDED)
            usage[f"abstained_{failure.cause if failure else 'cannot_tell'}"] += 1
            return Verdict(criterion_id=criterion_id, met=None, reason=reason)
        value = fmean(values)
        met = self._met(value)
        if self._votes > 1:
            agreeing = sum(self._met(one) == met for one in values)
            usage.update({"votes": len(values), "votes_agreeing": agreeing})
            if not self._scale.graded and value == 0.5:
                usage["abstained_tie"] += 1
                return Verdict(criterion_id=criterion_id, met=None, reason="the votes are tied")
        reason = next((vote.reason for vote in votes if vote.value is not None and vote.reason), "")
        score = value if self._scale.graded else None
        return Verdict(criterion_id=criterion_id, met=met, score=score, reason=reason)
