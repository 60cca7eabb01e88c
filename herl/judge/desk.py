"""Runs a judge for many answers at once, and holds what happens when it fails.

`submit` returns at once, so an answer is judged while the next ones are still being sampled. The judge's
coroutines run on an event loop in a thread of its own; torch stays in the caller's thread.

A judge that raises abstains: its answer gets verdicts with `met=None` and no reward. Causes are counted,
and once the share of abstained verdicts over the last `window` answers is above `max_abstention`, `watch`
raises `AbstentionLimit`.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import Future
from types import TracebackType

from herl.errors import AbstentionLimit, ConfigError, JudgeError
from herl.judge.base import Judge
from herl.types import Judged, Judgement, Rollout, Task, Verdict


class JudgeDesk:
    """A running judge.

    Args:
        judge: The judge to run.
        concurrency: Answers judged at the same time.
        max_abstention: Largest share of abstained verdicts, in [0, 1], over the window.
        window: Answers that the share is taken over. The limit holds from a full window on.
    """

    def __init__(
        self, judge: Judge, *, concurrency: int = 64, max_abstention: float = 0.5, window: int = 64
    ) -> None:
        if concurrency < 1 or window < 1 or not 0.0 <= max_abstention <= 1.0:
            raise ConfigError(
                "judge desk: expected concurrency >= 1, window >= 1 and max_abstention in [0, 1], "
                f"got {concurrency}, {window} and {max_abstention}"
            )
        self.judge = judge
        self.max_abstention = max_abstention
        self.causes: Counter[str] = Counter()
        self._concurrency = concurrency
        self._window: deque[tuple[int, int]] = deque(maxlen=window)
        self._last_failure = ""
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> JudgeDesk:
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(self._concurrency)
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None

    def submit(self, task: Task, rollout: Rollout) -> Future[Judged]:
        """Starts to judge an answer. The future never holds a judge's exception."""
        assert self._loop is not None, "use the desk in a with block"
        return asyncio.run_coroutine_threadsafe(self._judge(task, rollout), self._loop)

    def watch(self, judged: Iterable[Judged]) -> None:
        """Holds the limit on these answers, which other processes may have judged.

        Raises:
            AbstentionLimit: the judge fails too often; names the last cause.
        """
        for one in judged:
            abstained = [v for v in one.judgement.verdicts if v.met is None]
            self._window.append((len(abstained), len(one.judgement.verdicts)))
            if abstained:
                self._last_failure = abstained[-1].reason
        self._check_limit()

    async def _judge(self, task: Task, rollout: Rollout) -> Judged:
        async with self._slots:
            try:
                judgement = await self.judge.judge(task, rollout)
                _check_verdicts(task, judgement)
            except Exception as error:  # a plug-in may raise anything: it abstains, visibly
                judgement = self._abstained(task, rollout, error)
        return Judged(rollout=rollout, judgement=judgement)

    def _abstained(self, task: Task, rollout: Rollout, error: Exception) -> Judgement:
        cause = type(error).__name__
        self.causes[cause] += 1
        verdicts = tuple(
            Verdict(criterion_id=criterion.id, met=None, reason=f"{cause}: {error}")
            for criterion in task.rubric.criteria
        )
        return Judgement(rollout_id=rollout.id, verdicts=verdicts, reward=None)

    def _check_limit(self) -> None:
        abstained = sum(bad for bad, _ in self._window)
        total = sum(count for _, count in self._window)
        full = len(self._window) == self._window.maxlen
        if full and total and abstained / total > self.max_abstention:
            raise AbstentionLimit(
                f"the judge {type(self.judge).__name__} abstained on {abstained} of the last {total} "
                f"verdicts; judge_desk.max_abstention allows a share of {self.max_abstention}. "
                f"Last failure: {self._last_failure or 'verdicts with met=None'}"
            )

    async def _cancel_all(self) -> None:
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _check_verdicts(task: Task, judgement: Judgement) -> None:
    """A judge that skips or invents criteria has not judged: that is a failure, not a low score."""
    expected = [criterion.id for criterion in task.rubric.criteria]
    got = [verdict.criterion_id for verdict in judgement.verdicts]
    if sorted(got) != sorted(expected):
        raise JudgeError(f"expected one verdict for each of {expected}, got {got}")
    if judgement.reward is not None and not math.isfinite(judgement.reward):
        raise JudgeError(f"expected a finite reward, got {judgement.reward}")
