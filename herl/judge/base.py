"""The interface of a judge."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from herl.errors import ConfigError, DataError, JudgeError
from herl.judge.aggregation import ALL_OR_NOTHING, weighted
from herl.judge.budget import Budget
from herl.types import Judgement, Rollout, Rubric, Task, Verdict

NO_ANSWER = "the thinking never ended, so there is no answer"
INSTEAD = {
    "hindsight": "algorithm=grpo (or algorithm=told, if the rows have rubrics)",
    "advantages": "advantages=group with emphasis=none",
    "selection": "selection.joins=better",
    "teacher": "teacher.tell=rubric",
}
"""What needs no verdicts, by the setting that may need them."""


Sees = Literal["transcript", "answer"]
"""What a judge reads of an episode: all turns and replies, or the last answer."""


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

    judges_groups: bool = False
    """True for a judge that reads all answers of a group at once (`judge_group`)."""

    advice: str = (
        "judge=llm lets a language model judge by the texts of a rubric; judge=function calls your own "
        "function, which needs no rubric if it returns one number"
    )
    """Names judges for rows that this one cannot judge. It is shown once, below these rows."""

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

    async def judge_group(self, task: Task, rollouts: Sequence[Rollout]) -> list[Judgement]:
        """Returns the judgements of several answers to one task, in their order.

        It is called instead of `judge` if `judges_groups` is set. What the answers cost together belongs to
        the first judgement. An answer that could not be judged has verdicts that abstain; an error, as in
        `judge`, is one of all answers.
        """
        return [await self.judge(task, rollout) for rollout in rollouts]

    def uncached(self) -> Judge:
        """Returns this judge as it answers without any reply that it stored before; itself if it stores none.

        Raises:
            ConfigError: it answers from stored replies only.
        """
        return self

    def check_task(self, task: Task) -> None:
        """Checks that answers to a task can be judged at all. Called with rows of the run's data, in order,
        before a model loads (`herl.judge.check_rows`).

        By default a task needs a rubric, unless the judge is holistic. Override it to ask for more.

        Raises:
            DataError: names the criterion or the column, and what was expected of it.
            ConfigError: no row can be judged, e.g. because a function is broken.
        """
        if not self.holistic:
            require_rubric(task)

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
        """Returns a judgement with these verdicts and the reward they aggregate to. Verdicts on hidden
        criteria are left out of both."""
        seen = visible(task, verdicts)
        return Judgement(
            rollout_id=rollout.id,
            verdicts=seen,
            reward=self.aggregation(task.rubric, seen),
            usage=usage or {},
        )


def needs_verdicts(*parts: object) -> bool:
    """Whether a reward alone is not enough for one of these components: its `needs_verdicts` is true."""
    return any(getattr(part, "needs_verdicts", False) for part in parts)


def check_gives_verdicts(judge: Judge, needed: Mapping[str, bool]) -> None:
    """Checks that a judge gives verdicts on each criterion if some part of the run needs them.

    Args:
        judge: The judge.
        needed: By the keys of `INSTEAD`, whether that part of the run needs verdicts.

    Raises:
        ConfigError: a part needs them, and the judge is holistic.
    """
    for part in (name for name, needs in needed.items() if needs and judge.holistic):
        raise ConfigError(
            f"judge: {part} needs verdicts on each criterion, but a holistic judge gives one score for the "
            f"whole answer: use {INSTEAD[part]}, or a judge with verdicts (another judge.mode of judge=llm; "
            "a function that returns {'criterion id': True, ...} for rows with a rubric)"
        )


def check_may_add_up(judge: Judge, advantages: object) -> None:
    """Checks that advantages do not add up verdicts which the judge's aggregation does not.

    Args:
        judge: The judge.
        advantages: With a true `adds_up` they take verdicts and weights instead of the rewards that these
            aggregate to, and would reward what a gate forbids.

    Raises:
        ConfigError: names the aggregation.
    """
    chosen: object = getattr(judge.aggregation, "func", judge.aggregation)
    if getattr(advantages, "adds_up", False) and chosen in ALL_OR_NOTHING and not judge.holistic:
        raise ConfigError(
            "aggregation: expected a sum of verdicts, since advantages=by_criterion and any emphasis add "
            f"them up themselves, got {getattr(chosen, '__name__', chosen)}, under which one verdict undoes "
            f"all others: use aggregation=weighted, or {INSTEAD['advantages']}"
        )


def require_rubric(task: Task) -> None:
    """Raises a DataError if a task has no criteria; lists the columns that may hold them."""
    if not task.rubric.criteria:
        columns = ", ".join(map(str, task.meta))
        hint = f": if one of its other columns ({columns}) is one, set data.train.fields={{rubric: COLUMN}}"
        raise DataError("it has no rubric" + (hint if columns else ""))


def visible(task: Task, verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Returns the verdicts that are not on hidden criteria. A judge that knows the ids of a rubric by heart,
    such as a function that returns the same ones for every row, also gives those."""
    hidden = {criterion.id for criterion in task.hidden}
    return tuple(verdict for verdict in verdicts if verdict.criterion_id not in hidden)


def usable(task: Task, judgement: Judgement, needs_verdicts: bool = False) -> Judgement:
    """Returns a judgement with Python's numbers instead of NumPy's, which checkpoints could not load, and
    without verdicts on hidden criteria.

    Args:
        task: What was judged.
        judgement: From any judge.
        needs_verdicts: Whether a reward without verdicts is refused.

    Raises:
        JudgeError: criteria are left out or invented, which must not count as a low score; the reward is not
            finite; or it comes with verdicts on hidden criteria, so it may count them.
    """
    verdicts = tuple(
        replace(
            verdict,
            met=None if verdict.met is None else bool(verdict.met),
            score=None if verdict.score is None else float(verdict.score),
        )
        for verdict in visible(task, judgement.verdicts)
    )
    reward = None if judgement.reward is None else float(judgement.reward)
    if reward is not None and not math.isfinite(reward):
        raise JudgeError(f"expected a finite reward, got {reward}", "malformed")
    if reward is not None and len(verdicts) < len(judgement.verdicts):
        told = sorted(
            {one.criterion_id for one in judgement.verdicts} - {one.criterion_id for one in verdicts}
        )
        raise JudgeError(
            f"a judgement has verdicts on hidden criteria, which its reward may count: {told}. Judge only by "
            "task.rubric, or return verdicts alone, which herl adds up without them",
            "malformed",
        )
    expected = [criterion.id for criterion in task.rubric.criteria]
    got = [verdict.criterion_id for verdict in verdicts]
    holistic = not got and reward is not None and not needs_verdicts
    if not holistic and sorted(got) != sorted(expected):
        raise JudgeError(f"expected one verdict for each of {expected}, got {got}", "wrong_count")
    return replace(judgement, verdicts=verdicts, reward=reward)
