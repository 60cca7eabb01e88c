"""Runs a judge on many answers at once, and applies the failure policy.

`submit` returns immediately, so answers are judged while later ones are still being sampled. The judge's
coroutines run on an event loop in a separate thread; torch stays in the caller's thread.

Judges read the answer without the thinking before it. An attempt whose thinking never ended has no answer:
it is not shown to the judge, costs nothing, and fulfills no criterion (`Judge.unanswered`).

If a judge raises, the answer abstains: it gets verdicts with `met=None` and no reward. Causes are counted,
and `watch` stops the run if there are too many (`abstention.py`). Judging is charged to one budget for the
whole run; a gold judge has its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import replace
from types import TracebackType
from typing import Any

from herl.background.loop import ANYTHING, LoopThread, is_stopped
from herl.errors import ConfigError, JudgeError, JudgeStop
from herl.judge.abstention import AbstentionWindow, abstained
from herl.judge.base import Judge, usable
from herl.judge.budget import Budget
from herl.judge.llm.parse import without_thinking
from herl.types import Judged, Judgement, Rollout, Task, Verdict

logger = logging.getLogger(__name__)


class JudgeRunner:
    """A running judge.

    Args:
        judge: The judge to run.
        concurrency: Answers judged at the same time, on each rank.
        max_abstention: Largest allowed share of abstained verdicts over the window, in [0, 1].
        window: Number of answers the share is computed over. The limit applies once the window is full.
        strip_thinking: Whether judges are spared the thinking that the sampler split off, which needs tags
            that the tokenizer, the chat template or the end of the prompt knows. Otherwise they read it
            before the answer. A <think> block that an answer still begins with, from a model that was
            prompted to think, is removed as text.
        max_cannot_tell: Largest share of an answer's verdicts, in [0, 1], on which the judge may say that it
            cannot tell. More is an alarm, since the reward then rests on the few other verdicts.
        budget: Limits on the cost of this judge in the whole run; None for no limits.
        needs_verdicts: Whether a reward without verdicts counts as a failure, since hindsight or advantages
            cannot use it.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        concurrency: int = 64,
        max_abstention: float = 0.5,
        window: int = 64,
        strip_thinking: bool = True,
        max_cannot_tell: float = 0.5,
        budget: Budget | None = None,
        needs_verdicts: bool = False,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"module.judge_runner.concurrency: expected at least 1, got {concurrency}")
        if not 0.0 <= max_cannot_tell <= 1.0:
            raise ConfigError(
                f"module.judge_runner.max_cannot_tell: expected a share in [0, 1], got {max_cannot_tell}"
            )
        self.judge = judge
        self.budget = budget or Budget()
        self.needs_verdicts = needs_verdicts
        self.usage: Counter[str] = Counter()
        """Usage summed over all judgements of the run so far, on all ranks; `budget` tracks spending."""
        self._concurrency = concurrency
        self._strip_thinking = strip_thinking
        self._max_cannot_tell = max_cannot_tell
        self.abstentions = AbstentionWindow(window, max_abstention)
        self._warned = False
        self._thread: LoopThread | None = None

    def for_judge(self, judge: Judge) -> JudgeRunner:
        """Returns a runner of another judge with the same settings, which spends the same budget."""
        other = copy(self)
        other.judge = judge
        other.needs_verdicts = False
        other.usage = Counter()
        other.abstentions = AbstentionWindow(self.abstentions.answers, self.abstentions.limit)
        other._warned = False
        other._thread = None
        return other

    # Open and close

    def open(self) -> None:
        """Prepares the judge and starts its thread.

        Raises:
            ConfigError: the judge cannot run, e.g. because its key is not set.
        """
        self.judge.prepare()
        thread = LoopThread("judge")
        try:
            thread.run(self.judge.start(self.budget))
        except BaseException:
            thread.end()
            raise
        self._thread, self._slots = thread, asyncio.Semaphore(self._concurrency)

    def close(self) -> None:
        """Cancels pending judgements and ends the thread. Safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                thread.cancel_all()
                thread.run(self.judge.stop())
            finally:
                thread.end()

    def __enter__(self) -> JudgeRunner:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Judge

    def submit(self, task: Task, rollout: Rollout) -> Future[Judged]:
        """Starts judging an answer. If judging fails, the future holds an abstention.

        The future raises only errors that end the run: `JudgeStop` and `ConfigError`.
        """
        assert self._thread is not None, "open the runner first"
        return self._thread.submit(self._judge(task, rollout))

    def submit_group(self, task: Task, rollouts: Sequence[Rollout]) -> list[Future[Judged]]:
        """Starts judging several answers to one task together, which takes one of the `concurrency` slots.

        Only for a judge with `judges_groups`. The futures are as in `submit`.
        """
        assert self._thread is not None, "open the runner first"
        together = self._thread.submit(self._judge_group(task, rollouts))
        futures: list[Future[Judged]] = [Future() for _ in rollouts]
        together.add_done_callback(lambda done: _pass_on(done, futures))
        return futures

    async def _judge(self, task: Task, rollout: Rollout) -> Judged:
        async with self._slots:
            started = time.perf_counter()
            seen = self._seen(rollout)
            try:
                _check_finished(seen)
                found = (
                    await self.judge.judge(task, seen) if seen.has_answer else self._unanswered(task, seen)
                )
                judgement = usable(task, found, needs_verdicts=self.needs_verdicts)
            except (JudgeStop, ConfigError):
                raise
            except ANYTHING as error:  # the answer abstains and is counted
                if is_stopped(error):
                    raise
                judgement = self._abstained(task, rollout, error)
            seconds = time.perf_counter() - started
        return Judged(rollout=rollout, judgement=_with_usage(judgement, seconds, self._max_cannot_tell))

    async def _judge_group(self, task: Task, rollouts: Sequence[Rollout]) -> list[Judged]:
        """Judges answers together; those without an answer are not shown to the judge."""
        async with self._slots:
            started = time.perf_counter()
            seen = [self._seen(rollout) for rollout in rollouts]
            shown = [one for one in seen if _can_be_read(one)]
            try:
                found: list[Judgement | BaseException] = [
                    *(await self.judge.judge_group(task, shown) if shown else [])
                ]
                if len(found) != len(shown):
                    raise JudgeError(f"expected {len(shown)} judgements, got {len(found)}", "wrong_count")
            except (JudgeStop, ConfigError):
                raise
            except ANYTHING as error:  # the answers abstain and are counted
                if is_stopped(error):
                    raise
                found = [error for _ in shown]
            seconds = time.perf_counter() - started
        of_shown = iter(found)
        judged = []
        for rollout, one in zip(rollouts, seen, strict=True):
            try:
                _check_finished(one)
                judgement = next(of_shown) if one.has_answer else self._unanswered(task, one)
                if isinstance(judgement, BaseException):
                    raise judgement
                judgement = usable(task, judgement, needs_verdicts=self.needs_verdicts)
            except ANYTHING as error:  # of all answers, or of this one alone
                judgement = self._abstained(task, rollout, error)
            judgement = _with_usage(judgement, seconds, self._max_cannot_tell)
            judged.append(Judged(rollout=rollout, judgement=judgement))
        return judged

    def _seen(self, rollout: Rollout) -> Rollout:
        """The answer as the judge reads it."""
        return _spared(rollout) if self._strip_thinking else _with_thinking(rollout)

    def _abstained(self, task: Task, rollout: Rollout, error: BaseException) -> Judgement:
        cause = error.cause if isinstance(error, JudgeError) else "other"
        told = f"{type(error).__name__}: {error}"
        verdicts = tuple(
            Verdict(criterion_id=criterion.id, met=None, reason=told) for criterion in task.rubric.criteria
        )
        if not verdicts:
            self.abstentions.last_error = told
        usage = {f"abstained_{cause}": float(max(1, len(verdicts)))}
        return Judgement(rollout_id=rollout.id, verdicts=verdicts, reward=None, usage=usage)

    def _unanswered(self, task: Task, rollout: Rollout) -> Judgement:
        judgement = self.judge.unanswered(task, rollout)
        return replace(judgement, usage={"no_answer": 1.0, **judgement.usage})

    # Watch

    def watch(self, judged: Sequence[Judged]) -> None:
        """Adds up the usage of these answers and enforces the abstention limit.

        Every rank must pass the same answers.

        Raises:
            AbstentionLimit: the judge fails too often; the message lists the causes.
        """
        usages = [answer.judgement.usage for answer in judged]
        self.budget.settle(usages)
        for usage in usages:
            self.usage.update(usage)
        for answer in judged:
            self.abstentions.add(answer.judgement)
            self._warn_of_cannot_tell(answer)
        self.abstentions.check(type(self.judge).__name__, self.causes())

    def check_judged(self) -> None:
        """Checks that the judge could judge something, even if the window never filled.

        Raises:
            AbstentionLimit: there were answers, and none of them has a reward.
        """
        self.abstentions.check_any(type(self.judge).__name__, self.causes())

    def _warn_of_cannot_tell(self, judged: Judged) -> None:
        """Warns of the first answer of which the judge says too often that it cannot tell."""
        if judged.judgement.usage.get("mostly_cannot_tell") and not self._warned:
            self._warned = True
            logger.warning(
                "alarm: the judge %s cannot tell on %d of %d criteria of an answer to task '%s', more than a "
                "share of %g (module.judge_runner.max_cannot_tell); its reward rests on the others. Such "
                "answers are counted in judge/mostly_cannot_tell",
                type(self.judge).__name__,
                abstained(judged.judgement),
                len(judged.judgement.verdicts),
                judged.rollout.task_id,
                self._max_cannot_tell,
            )

    def causes(self) -> dict[str, int]:
        """Returns the number of abstained verdicts in the run so far, by cause; an answer without a rubric
        counts as one verdict."""
        found = {name: count for name, count in self.usage.items() if name.startswith("abstained_")}
        return {name.removeprefix("abstained_"): int(count) for name, count in sorted(found.items())}

    def totals(self) -> dict[str, float]:
        """Returns the usage of the run so far, including the spending on abandoned batches."""
        return self.usage | {name: self.budget.spent(name) for name in ("calls", "tokens", "cost")}

    def state_dict(self) -> dict[str, Any]:
        """Returns the counters that a resumed run continues from."""
        return {"totals": self.totals()} | self.abstentions.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Adds the counts from before the resume, including costs."""
        self.usage.update(state["totals"])
        self.budget.settle([state["totals"]])
        self.abstentions.load_state_dict(state)


def _pass_on(done: Future[list[Judged]], futures: Sequence[Future[Judged]]) -> None:
    """Gives each answer of a group its own result."""
    for place, future in enumerate(futures):
        if done.cancelled():
            future.cancel()
        elif error := done.exception():
            future.set_exception(error)
        else:
            future.set_result(done.result()[place])


def _can_be_read(rollout: Rollout) -> bool:
    return rollout.has_answer and rollout.finish_reason != "failed"


def _check_finished(rollout: Rollout) -> None:
    """Raises a JudgeError if the answer's environment failed, so that there is nothing to judge."""
    if rollout.finish_reason == "failed":
        raise JudgeError(
            "the environment failed in the middle of the answer; a warning said how", "environment"
        )


def _spared(rollout: Rollout) -> Rollout:
    """The answer alone. A sampler that does not know the tags leaves a <think> block in the text."""
    if rollout.thinking or not rollout.text.lstrip().startswith("<think>"):
        return rollout
    return replace(rollout, text=without_thinking(rollout.text), has_answer="</think>" in rollout.text)


def _with_thinking(rollout: Rollout) -> Rollout:
    """Thinking and answer in one text."""
    parts = [part for part in (rollout.thinking, rollout.text) if part]
    return replace(rollout, text="\n\n".join(parts), has_answer=True)


def _with_usage(judgement: Judgement, seconds: float, max_cannot_tell: float) -> Judgement:
    """Adds the elapsed time, and counts abstentions for which the judge gave no cause as `cannot_tell`.

    `mostly_cannot_tell` is 1 if that is more than the allowed share of the answer's verdicts.
    """
    usage = {"seconds": seconds, **judgement.usage}
    unjudged = abstained(judgement)
    explained = sum(count for name, count in usage.items() if name.startswith("abstained_"))
    if unjudged > explained:
        usage["abstained_cannot_tell"] = usage.get("abstained_cannot_tell", 0) + unjudged - explained
    untold = usage.get("abstained_cannot_tell", 0) + usage.get("abstained_tie", 0)
    if judgement.verdicts and untold > max_cannot_tell * len(judgement.verdicts):
        usage["mostly_cannot_tell"] = 1.0
    return replace(judgement, usage=usage)
