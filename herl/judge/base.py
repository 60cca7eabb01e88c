"""The interface of a judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

from herl.judge.aggregation import weighted
from herl.types import Judgement, Rollout, Rubric, Task, Verdict


class Aggregation(Protocol):
    """Verdicts and weights -> reward, or None when every verdict abstained."""

    def __call__(self, rubric: Rubric, verdicts: Sequence[Verdict]) -> float | None: ...


class Judge(ABC):
    """Judges one answer at a time; the framework runs many at once.

    Args:
        aggregation: How verdicts and weights become the reward (`herl.judge.aggregation`).
    """

    def __init__(self, aggregation: Aggregation = weighted) -> None:
        self.aggregation = aggregation

    @abstractmethod
    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns one verdict per criterion of `task.rubric`, and the reward they add up to.

        Raises:
            JudgeError: no verdict could be had. The caller lets the whole answer abstain.
        """

    def verdict_sum(
        self,
        task: Task,
        rollout: Rollout,
        verdicts: Sequence[Verdict],
        usage: Mapping[str, float] | None = None,
    ) -> Judgement:
        """Returns the judgement that these verdicts add up to under the judge's aggregation."""
        return Judgement(
            rollout_id=rollout.id,
            verdicts=tuple(verdicts),
            reward=self.aggregation(task.rubric, verdicts),
            usage=usage or {},
        )
