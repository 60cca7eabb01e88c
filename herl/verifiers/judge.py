"""Rewards of an environment of `verifiers` as verdicts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from herl.errors import ConfigError, JudgeError, check_above, did_you_mean
from herl.judge.aggregation import weighted
from herl.judge.base import Aggregation, Judge
from herl.types import Judgement, Rollout, Task, Verdict
from herl.verifiers.episode import Score, bare
from herl.verifiers.loading import loaded

logger = logging.getLogger(__name__)


class VerifiersJudge(Judge):
    """Gives a verdict for each reward function of an environment.

    Args:
        name: The environment's name, as in `VerifiersEnvironment`.
        arguments: Arguments of its `load_environment`.
        ranges: Lowest and highest score of functions whose scores are not in [0, 1], by function name; they
            are mapped to [0, 1]. A score outside its range is no verdict: the criterion abstains.
        met_at: Smallest score in [0, 1] at which a criterion counts as met.
        timeout_seconds: Longest time that the rewards of an answer may take. None for no limit.
        aggregation: How verdicts and weights become the reward.
    """

    advice = "judge=verifiers judges rows of data=verifiers, by the environment's own reward functions"

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        ranges: Mapping[str, Sequence[float]] | None = None,
        met_at: float = 1.0,
        timeout_seconds: float | None = 60.0,
        aggregation: Aggregation = weighted,
    ) -> None:
        super().__init__(aggregation)
        check_above("judge", 0, timeout_seconds=timeout_seconds)
        if not 0.0 < met_at <= 1.0:
            raise ConfigError(f"judge.met_at: expected a number in (0, 1], got {met_at}")
        self._loaded = loaded(name, arguments)
        self._loaded.judged = True
        self._met_at, self._seconds = met_at, timeout_seconds
        self._ranges = {**(ranges or {})}
        self._warned: set[str] = set()
        known = [one.id for one in self._loaded.rubric.criteria]
        for one, limits in self._ranges.items():
            if one not in known:
                raise ConfigError(
                    f"judge.ranges.{one}: expected one of {', '.join(known)}.{did_you_mean(one, known)}"
                )
            if len(limits) != 2 or not limits[0] < limits[1]:
                raise ConfigError(f"judge.ranges.{one}: expected [lowest, highest], got {list(limits)}")

    def check_task(self, task: Task) -> None:
        """Checks that a row is one of the environment's."""
        self._loaded.row(task)
        super().check_task(task)

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns a graded verdict for each reward function.

        Raises:
            JudgeError: the episode's state is gone, or its rewards took too long.
        """
        try:
            async with asyncio.timeout(self._seconds):
                found = self._loaded.scores(task, rollout)
                scores = await asyncio.shield(asyncio.wrap_future(found))  # others may ask, too
        except TimeoutError as error:
            told = f"{self._loaded.name}: its rewards took longer than judge.timeout_seconds={self._seconds}"
            raise JudgeError(told, "timeout") from error
        except JudgeError as error:  # the episode keeps its own, which must not hold this answer's frames
            bare(error)
            raise JudgeError(str(error), error.cause) from None
        verdicts = [self._verdict(one.id, scores[one.id]) for one in task.rubric.criteria]
        failed = sum(one.met is None for one in verdicts)
        usage = {"abstained_function": float(failed)} if failed else {}
        return self.verdict_sum(task, rollout, verdicts, usage)

    def _verdict(self, name: str, score: Score) -> Verdict:
        low, high = self._ranges.get(name, (0.0, 1.0))
        if isinstance(score, BaseException):
            return self._abstained(name, f"{name} raised {type(score).__name__}: {score}")
        if not low <= score <= high:
            return self._abstained(
                name, f"{name}: expected a score in [{low:g}, {high:g}] (judge.ranges.{name}), got {score:g}"
            )
        value = (score - low) / (high - low)
        return Verdict(criterion_id=name, met=value >= self._met_at, score=value)

    def _abstained(self, name: str, reason: str) -> Verdict:
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("judge: %s. The criterion abstains", reason)
        return Verdict(criterion_id=name, met=None, reason=reason)
