"""Runs a judge on many answers at once, and applies the failure policy.

`submit` returns immediately, so answers are judged while later ones are still being sampled. The judge's
coroutines run on an event loop in a separate thread; torch stays in the caller's thread.

If a judge raises, the answer abstains: it gets verdicts with `met=None` and no reward. Causes are counted,
and once the share of abstained verdicts over the last `window` answers exceeds `max_abstention`, `watch`
raises `AbstentionLimit`. Judging is charged to one budget for the whole run.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any

from herl.errors import AbstentionLimit, ConfigError, JudgeError, JudgeStop
from herl.judge.base import Judge
from herl.judge.budget import Budget
from herl.judge.llm.parse import without_thinking
from herl.types import Judged, Judgement, Rollout, Task, Verdict


class JudgeRunner:
    """A running judge.

    Args:
        judge: The judge to run.
        concurrency: Answers judged at the same time.
        max_abstention: Largest allowed share of abstained verdicts over the window, in [0, 1].
        window: Number of answers the share is computed over. The limit applies once the window is full.
        strip_thinking: Whether to remove the thinking up to </think> before an answer is judged.
        budget: Limits on the cost of judging in the whole run; None for no limits.
        needs_verdicts: Whether a reward without verdicts counts as a failure, since hindsight cannot use it.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        concurrency: int = 64,
        max_abstention: float = 0.5,
        window: int = 64,
        strip_thinking: bool = False,
        budget: Budget | None = None,
        needs_verdicts: bool = False,
    ) -> None:
        if concurrency < 1 or window < 1 or not 0.0 <= max_abstention <= 1.0:
            raise ConfigError(
                "module.judge_runner: expected concurrency >= 1, window >= 1 and max_abstention in [0, 1], "
                f"got {concurrency}, {window} and {max_abstention}"
            )
        self.judge = judge
        self.max_abstention = max_abstention
        self.budget = budget or Budget()
        self.needs_verdicts = needs_verdicts
        self.usage: Counter[str] = Counter()
        """Usage summed over all judgements of the run so far, on all ranks; `budget` tracks spending."""
        self._concurrency = concurrency
        self._strip_thinking = strip_thinking
        self._window: deque[tuple[int, int]] = deque(maxlen=window)
        self._last_failure = ""
        self._loop: asyncio.AbstractEventLoop | None = None

    def for_judge(self, judge: Judge) -> JudgeRunner:
        """Returns a runner of another judge with the same settings, which spends the same budget."""
        assert self._window.maxlen is not None
        return type(self)(
            judge,
            concurrency=self._concurrency,
            max_abstention=self.max_abstention,
            window=self._window.maxlen,
            strip_thinking=self._strip_thinking,
            budget=self.budget,
        )

    # Open and close

    def open(self) -> None:
        """Prepares the judge and starts its thread.

        Raises:
            ConfigError: the judge cannot run, e.g. because its key is not set.
        """
        self.judge.prepare()
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(self._concurrency)
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        try:
            self._run(self.judge.start(self.budget))
        except BaseException:
            self._end_thread()
            raise

    def close(self) -> None:
        """Cancels pending judgements and ends the thread. Safe to call twice."""
        if self._loop is not None:
            try:
                self._run(self._cancel_all())
                self._run(self.judge.stop())
            finally:
                self._end_thread()

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

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_thread(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        self._loop = None

    async def _cancel_all(self) -> None:
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # Judge

    def submit(self, task: Task, rollout: Rollout) -> Future[Judged]:
        """Starts judging an answer. If judging fails, the future holds an abstention.

        The future raises only errors that end the run: `JudgeStop` and `ConfigError`.
        """
        assert self._loop is not None, "open the runner first"
        return asyncio.run_coroutine_threadsafe(self._judge(task, rollout), self._loop)

    async def _judge(self, task: Task, rollout: Rollout) -> Judged:
        async with self._slots:
            started = time.perf_counter()
            seen = replace(rollout, text=without_thinking(rollout.text)) if self._strip_thinking else rollout
            try:
                judgement = _with_python_numbers(await self.judge.judge(task, seen))
                self._check(task, judgement)
            except (JudgeStop, ConfigError):
                raise
            except Exception as error:  # a plug-in may raise anything; the answer abstains and is counted
                judgement = _abstained(task, rollout, error)
            seconds = time.perf_counter() - started
        return Judged(rollout=rollout, judgement=_with_usage(judgement, seconds))

    def _check(self, task: Task, judgement: Judgement) -> None:
        """Treats a judgement that skips or invents criteria as a failure, not as a low score."""
        expected = [criterion.id for criterion in task.rubric.criteria]
        got = [verdict.criterion_id for verdict in judgement.verdicts]
        if judgement.reward is not None and not math.isfinite(judgement.reward):
            raise JudgeError(f"expected a finite reward, got {judgement.reward}", "malformed")
        if not got and judgement.reward is not None and not self.needs_verdicts:
            return  # a holistic judgement
        if sorted(got) != sorted(expected):
            raise JudgeError(f"expected one verdict for each of {expected}, got {got}", "wrong_count")

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
            abstained = [v for v in answer.judgement.verdicts if v.met is None]
            self._window.append((len(abstained), max(1, len(answer.judgement.verdicts))))
            if abstained:
                self._last_failure = abstained[-1].reason
        self._check_limit()

    def causes(self) -> dict[str, int]:
        """Returns the number of abstained verdicts in the run so far, by cause."""
        found = {name: count for name, count in self.usage.items() if name.startswith("abstained_")}
        return {name.removeprefix("abstained_"): int(count) for name, count in sorted(found.items())}

    def totals(self) -> dict[str, float]:
        """Returns the usage of the run so far, including the spending on abandoned batches."""
        return self.usage | {name: self.budget.spent(name) for name in ("calls", "tokens", "cost")}

    def state_dict(self) -> dict[str, Any]:
        """Returns the counters that a resumed run continues from."""
        return {"totals": self.totals(), "window": list(self._window), "failure": self._last_failure}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Adds the counts from before the resume, including costs."""
        self.usage.update(state["totals"])
        self.budget.settle([state["totals"]])
        self._window.extend(state["window"])
        self._last_failure = state["failure"]

    def _check_limit(self) -> None:
        abstained = sum(bad for bad, _ in self._window)
        total = sum(count for _, count in self._window)
        full = len(self._window) == self._window.maxlen
        if full and total and abstained / total > self.max_abstention:
            self._window.clear()  # a resumed run, perhaps with a better judge, starts with an empty window
            causes = ", ".join(f"{cause} {count}" for cause, count in self.causes().items())
            raise AbstentionLimit(
                f"the judge {type(self.judge).__name__} abstained on {abstained} of the last {total} "
                f"verdicts; module.judge_runner.max_abstention allows a share of {self.max_abstention}. "
                f"Causes in the whole run: {causes}. "
                f"Last failure: {self._last_failure or 'a verdict with met=None'}"
            )


def _with_python_numbers(judgement: Judgement) -> Judgement:
    """Converts NumPy numbers, which a user's judge may return, because checkpoints with them cannot load."""
    verdicts = tuple(
        replace(
            verdict,
            met=None if verdict.met is None else bool(verdict.met),
            score=None if verdict.score is None else float(verdict.score),
        )
        for verdict in judgement.verdicts
    )
    reward = None if judgement.reward is None else float(judgement.reward)
    return replace(judgement, verdicts=verdicts, reward=reward)


def _abstained(task: Task, rollout: Rollout, error: Exception) -> Judgement:
    cause = error.cause if isinstance(error, JudgeError) else "other"
    verdicts = tuple(
        Verdict(criterion_id=criterion.id, met=None, reason=f"{type(error).__name__}: {error}")
        for criterion in task.rubric.criteria
    )
    usage = {f"abstained_{cause}": float(len(verdicts))}
    return Judgement(rollout_id=rollout.id, verdicts=verdicts, reward=None, usage=usage)


def _with_usage(judgement: Judgement, seconds: float) -> Judgement:
    """Adds the elapsed time, and counts abstentions for which the judge gave no cause as `cannot_tell`."""
    usage = {"seconds": seconds, **judgement.usage}
    abstained = sum(verdict.met is None for verdict in judgement.verdicts)
    explained = sum(count for name, count in usage.items() if name.startswith("abstained_"))
    if abstained > explained:
        usage["abstained_cannot_tell"] = usage.get("abstained_cannot_tell", 0) + abstained - explained
    return replace(judgement, usage=usage)
