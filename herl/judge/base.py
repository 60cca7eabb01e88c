"""The interface of a judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

from herl.judge.aggregation import weighted
from herl.judge.budget import Budget
from herl.types import Judgement, Rollout, Rubric, Task, Verdict


class Aggregation(Protocol):
    """Verdicts and weights -> reward, or None when every verdict abstained."""

    def __call__(self, rubric: Rubric, verdicts: Sequence[Verdict]) -> float | None: ...


class Judge(ABC):
    """Judges one answer at a time; the framework runs many at once, on one event loop.

    Only `judge` must be written. The rest is for judges that hold something: the framework calls `prepare`
    once, then `start`, any number of `judge`, `stop`, perhaps `start` again, and `close` at the end.

    Args:
        aggregation: How verdicts and weights become the reward (`herl.judge.aggregation`).
    """

    holistic: bool = False
    """True for a judge that gives one reward and no verdicts: hindsight could not say what was missed."""

    def __init__(self, aggregation: Aggregation = weighted) -> None:
        self.aggregation = aggregation

    @abstractmethod
    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns one verdict per criterion of `task.rubric`, and the reward they add up to.

        Raises:
            JudgeError: no verdict could be had. The caller lets the whole answer abstain.
            BudgetSpent: a call that costs would go beyond the budget. The run stops.
            ConfigError: no call can ever succeed, say for a wrong key. The run stops.
        """

    def prepare(self) -> None:  # noqa: B027  # nothing to do is the right default
        """Loads models and starts servers, in the main thread of every rank. Safe to call again."""

    async def start(self, budget: Budget) -> None:  # noqa: B027
        """Opens what belongs to the event loop. What a call costs is taken from the budget."""

    async def stop(self) -> None:  # noqa: B027
        """Closes what `start` opened."""

    def close(self) -> None:  # noqa: B027
        """Ends what `prepare` began."""

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
