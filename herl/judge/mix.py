"""Combines several judges into one: each criterion goes to the judge that suits it, or to every judge.

A judge that fails removes only its own criteria, or its own vote, from the reward.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace

from herl.background.loop import ANYTHING, is_stopped
from herl.errors import ConfigError, DataError, JudgeError, JudgeStop
from herl.judge.aggregation import reaches, weighted
from herl.judge.base import Aggregation, Judge, require_rubric, visible
from herl.judge.budget import Budget
from herl.types import Criterion, Judgement, Rollout, Rubric, Task, Verdict

logger = logging.getLogger(__name__)


class JudgeGroup(Judge, ABC):
    """Base class of combined judges, which start and stop together.

    Args:
        judges: The judges by name. Their own aggregations are ignored.
        aggregation: How the verdicts of all judges become the reward.
    """

    advice = (
        "Add a judge that fits: judge=mix +judge@judge.judges.model=llm judge.default=model sends criteria "
        "without a route to a language model"
    )

    def __init__(self, judges: Mapping[str, Judge], aggregation: Aggregation = weighted) -> None:
        super().__init__(aggregation)
        for name, judge in judges.items():
            _refuse_holistic(name, judge)
            if judge.judges_groups:
                raise ConfigError(
                    f"judge.judges.{name}.mode: expected a judge of single answers, since several judges "
                    "share each answer; got group"
                )
        if not judges:
            raise ConfigError("judge.judges: expected at least one judge, got none")
        self.judges = dict(judges)
        self._warned = False

    @abstractmethod
    def shares(self, task: Task) -> dict[str, list[Criterion]]:
        """Returns which criteria of a task each judge judges, by the judge's name."""

    def check_task(self, task: Task) -> None:
        """Checks that some judge can judge its criteria. Warns of criteria that will abstain.

        Raises:
            DataError: none can, so every answer would abstain.
        """
        require_rubric(task)
        faults: list[str] = []
        shares = self.shares(task)
        for name, criteria in shares.items():
            try:
                self.judges[name].check_task(replace(task, rubric=Rubric(criteria=tuple(criteria))))
            except DataError as error:
                faults.append(f"judge '{name}': {error}")
            _refuse_holistic(name, self.judges[name])  # a function shows it when it is tried
        if not shares:
            raise DataError(f"criterion '{task.rubric.criteria[0].id}': no route leads to a judge")
        if len(faults) == len(shares):
            raise DataError("; ".join(faults))
        if faults and not self._warned:
            self._warned = True
            logger.warning(
                "row '%s' has criteria that one of its judges cannot judge; it abstains, and the reward "
                "rests on the other judges: %s. Rows like this one are not reported again",
                task.id,
                "; ".join(faults),
            )

    def uncached(self) -> JudgeGroup:
        """Returns the same judges without what they stored."""
        other = copy(self)
        other.judges = {name: judge.uncached() for name, judge in self.judges.items()}
        return other

    def prepare(self) -> None:
        """Prepares every judge."""
        for judge in self.judges.values():
            judge.prepare()

    async def start(self, budget: Budget) -> None:
        """Starts every judge with the same budget."""
        for judge in self.judges.values():
            await judge.start(budget)

    async def stop(self) -> None:
        """Stops every judge."""
        for judge in self.judges.values():
            await judge.stop()

    def close(self) -> None:
        """Closes every judge."""
        for judge in self.judges.values():
            judge.close()

    async def verdicts(
        self, name: str, task: Task, criteria: Sequence[Criterion], rollout: Rollout, usage: Counter[str]
    ) -> dict[str, Verdict]:
        """Returns one judge's verdicts on these criteria by id; if the judge fails, all of them abstain."""
        part = replace(task, rubric=Rubric(criteria=tuple(criteria)))
        try:
            judgement = await self.judges[name].judge(part, rollout)
            usage.update(judgement.usage)
            found = {verdict.criterion_id: verdict for verdict in visible(task, judgement.verdicts)}
            expected = [criterion.id for criterion in criteria]
            if sorted(found) != sorted(expected):
                raise JudgeError(
                    f"expected one verdict for each of {expected}, got {list(found)}", "wrong_count"
                )
        except (JudgeStop, ConfigError):
            raise
        except ANYTHING as error:  # its criteria abstain and are counted
            if is_stopped(error):
                raise
            usage[f"abstained_{error.cause if isinstance(error, JudgeError) else 'other'}"] += len(criteria)
            reason = f"judge '{name}': {error}"
            return {c.id: Verdict(criterion_id=c.id, met=None, reason=reason) for c in criteria}
        return found


class RoutedJudge(JudgeGroup):
    """Sends each criterion to one judge, chosen by the kind of its check, else by its category.

    Args:
        judges: The judges by name.
        routes: Kind of check, or category -> name of a judge.
        default: Judge for all other criteria; if None, they abstain.
        aggregation: How the verdicts of all judges become the reward.
    """

    def __init__(
        self,
        judges: Mapping[str, Judge],
        routes: Mapping[str, str],
        default: str | None = None,
        aggregation: Aggregation = weighted,
    ) -> None:
        super().__init__(judges, aggregation)
        unknown = sorted({name for name in (*routes.values(), default or "") if name} - set(judges))
        if unknown:
            raise ConfigError(f"judge.routes: expected names of judges ({', '.join(judges)}), got {unknown}")
        self._routes = dict(routes)
        self._default = default

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns the verdicts of all judges, each on its own criteria."""
        usage: Counter[str] = Counter()
        parts = await asyncio.gather(
            *(
                self.verdicts(name, task, criteria, rollout, usage)
                for name, criteria in self.shares(task).items()
            )
        )
        found = {criterion_id: verdict for part in parts for criterion_id, verdict in part.items()}
        verdicts = [
            found.get(c.id) or Verdict(criterion_id=c.id, met=None, reason="no route leads to a judge")
            for c in task.rubric.criteria
        ]
        return self.verdict_sum(task, rollout, verdicts, dict(usage))

    def shares(self, task: Task) -> dict[str, list[Criterion]]:
        """Returns the criteria by the judge that their route leads to."""
        shares: dict[str, list[Criterion]] = {}
        for criterion in task.rubric.criteria:
            name = self._route(criterion)
            if name is not None:
                shares.setdefault(name, []).append(criterion)
        return shares

    def _route(self, criterion: Criterion) -> str | None:
        kind = str((criterion.check or {}).get("kind", ""))
        return self._routes.get(kind) or self._routes.get(criterion.category) or self._default


class WeightedJudges(JudgeGroup):
    """Asks every judge about every criterion. The verdict is the weighted mean over non-abstaining judges.

    Args:
        judges: The judges by name.
        weights: Weight of each judge; judges not named have weight 1.
        met_at: Smallest mean in [0, 1] at which a criterion counts as met.
        aggregation: How the verdicts become the reward.
    """

    def __init__(
        self,
        judges: Mapping[str, Judge],
        weights: Mapping[str, float] | None = None,
        met_at: float = 0.5,
        aggregation: Aggregation = weighted,
    ) -> None:
        super().__init__(judges, aggregation)
        self._weights = dict.fromkeys(judges, 1.0) | dict(weights or {})
        if set(self._weights) != set(judges) or min(self._weights.values()) <= 0:
            raise ConfigError(
                f"judge.weights: expected numbers above 0 for {', '.join(judges)}, got {weights}"
            )
        self._met_at = met_at

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns one verdict per criterion, with the judges' mean as its score."""
        usage: Counter[str] = Counter()
        names = list(self.judges)
        criteria = task.rubric.criteria
        parts = await asyncio.gather(*(self.verdicts(name, task, criteria, rollout, usage) for name in names))
        verdicts = [
            self._mean(
                criterion.id, {name: part.get(criterion.id) for name, part in zip(names, parts, strict=True)}
            )
            for criterion in criteria
        ]
        if not any(verdict.met is None for verdict in verdicts):  # other judges covered every failure
            usage = Counter({name: n for name, n in usage.items() if not name.startswith("abstained_")})
        return self.verdict_sum(task, rollout, verdicts, dict(usage))

    def shares(self, task: Task) -> dict[str, list[Criterion]]:
        """Returns all criteria for every judge."""
        return {name: list(task.rubric.criteria) for name in self.judges}

    def _mean(self, criterion_id: str, verdicts: Mapping[str, Verdict | None]) -> Verdict:
        values = {
            name: float(verdict.met) if verdict.score is None else verdict.score
            for name, verdict in verdicts.items()
            if verdict is not None and verdict.met is not None
        }
        reason = "; ".join(
            f"{name}: {v.reason}" for name, v in verdicts.items() if v is not None and v.reason
        )
        if not values:
            return Verdict(criterion_id=criterion_id, met=None, reason=reason)
        total = sum(self._weights[name] for name in values)
        mean = sum(self._weights[name] * value for name, value in values.items()) / total
        return Verdict(criterion_id=criterion_id, met=reaches(mean, self._met_at), score=mean, reason=reason)


def _refuse_holistic(name: str, judge: Judge) -> None:
    if judge.holistic:
        raise ConfigError(
            f"judge.judges.{name}: expected a judge with a verdict per criterion, got one with a single score"
        )
