"""The interface of a judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

from herl.judge.aggregation import weighted
from herl.judge.budget import Budget
from herl.types import Judgement, Rollout, Rubric, Task, Verdict

NO_ANSWER = "the thinking never ended, so there is no answer"


class Aggregation(Protocol):
    """Verdicts and weights -> reward, or None if every verdict abstained."""

    def __call__(self, rubric: Rubric, verdicts: Sequence[Verdict]) -> float | None: ...


class Judge(ABC):
    """Judges one answer at a time; the framework runs many calls at once, on one event loop.

    Only `judge` is required. The other methods are for judges that hold resources: the framework calls
    `prepare` once, then `start`, `judge` any number of times, `stop`, perhaps `start` again, and finally
    `close`.

    Args:
        aggregation: How verdicts and weights become the reward (`herl.judge.aggregation`).
    """

    holistic: bool = False
    """True for a judge that returns one reward and no verdicts. Hindsight cannot use such a judge."""

    def __init__(self, aggregation: Aggregation = weighted) -> None:
        self.aggregation = aggregation

    @abstractmethod
    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns one verdict per criterion of `task.rubric`, and the reward they add up to.

        Raises:
            JudgeError: no verdict could be obtained. The whole answer abstains.
            BudgetSpent: a paid call would exceed the budget. The run stops.
            ConfigError: no call can ever succeed, e.g. because the key is wrong. The run stops.
        """

    def prepare(self) -> None:  # noqa: B027  # nothing to do is the right default
        """Loads models and starts servers, in the main thread of every rank. Safe to call twice."""

    async def start(self, budget: Budget) -> None:  # noqa: B027
        """Opens resources bound to the event loop. Paid calls are charged to the budget."""

    async def stop(self) -> None:  # noqa: B027
        """Closes the resources that `start` opened."""

    def close(self) -> None:  # noqa: B027
        """Releases the models and servers that `prepare` set up."""

    def unanswered(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns the judgement on an attempt that has no answer, because its thinking never ended.

        No criterion is fulfilled, so nothing is earned by avoiding something either; the reward is what these
        verdicts aggregate to. A holistic judge returns 0 and no verdicts; override this if that is not the
        lowest reward.
        """
        verdicts = [
            Verdict(
                criterion_id=criterion.id,
                met=criterion.undesirable,
                score=float(criterion.undesirable),
                reason=NO_ANSWER,
            )
            for criterion in task.rubric.criteria
        ]
        usage = {"no_answer": 1.0}
        if self.holistic:
            return Judgement(rollout_id=rollout.id, verdicts=(), reward=0.0, usage=usage)
        return self.verdict_sum(task, rollout, verdicts, usage)

    def verdict_sum(
        self,
        task: Task,
        rollout: Rollout,
        verdicts: Sequence[Verdict],
        usage: Mapping[str, float] | None = None,
    ) -> Judgement:
        """Returns a judgement with these verdicts and the reward they aggregate to."""
        return Judgement(
            rollout_id=rollout.id,
            verdicts=tuple(verdicts),
            reward=self.aggregation(task.rubric, verdicts),
            usage=usage or {},
        )
