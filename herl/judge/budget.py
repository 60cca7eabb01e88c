"""What judging may cost in one run, and what it has cost so far.

Every rank spends from a budget of its own that knows what all of them had spent when answers were last
gathered. Between two gatherings they can exceed it together by what is under way.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

from herl.errors import BudgetSpent, check_above

logger = logging.getLogger(__name__)


class Budget:
    """Limits over the whole run, resumed parts included; None for no limit.

    Args:
        calls: Requests sent to judges, failed ones included.
        tokens: Tokens read and written by judges.
        cost: Money, in the unit of the judge's prices.
        warn_at: Share of a limit at which a warning is logged, once.
    """

    def __init__(
        self,
        calls: int | None = None,
        tokens: int | None = None,
        cost: float | None = None,
        warn_at: float = 0.8,
    ) -> None:
        self.limits = {
            name: limit
            for name, limit in (("calls", calls), ("tokens", tokens), ("cost", cost))
            if limit is not None
        }
        check_above("module.judge_runner.budget", 0, **self.limits, warn_at=warn_at)
        self.warn_at = warn_at
        self.settled: Counter[str] = Counter()
        """Spent by all ranks, as of the last time that answers were gathered."""
        self.unsettled: Counter[str] = Counter()
        """Spent by this rank since then."""
        self._warned: set[str] = set()

    def spent(self, name: str) -> float:
        """Returns what is known to be spent of "calls", "tokens" or "cost"."""
        return self.settled[name] + self.unsettled[name]

    def reserve_call(self) -> None:
        """Takes one call from the budget.

        Raises:
            BudgetSpent: nothing is left.
        """
        for name, limit in self.limits.items():
            if self.spent(name) >= limit:
                raise BudgetSpent(
                    f"the judge's budget is spent: {self.spent(name):g} of {limit:g} {name}. Raise "
                    f"module.judge_runner.budget.{name} and resume: replies that were paid for are cached"
                )
        self._add({"calls": 1})

    def add(self, tokens: int, cost: float) -> None:
        """Adds what a call turned out to cost."""
        self._add({"tokens": tokens, "cost": cost})

    def settle(self, usages: Iterable[Mapping[str, float]]) -> None:
        """Replaces what this rank spent by what all ranks did, from the judgements that they gathered.

        What a judge spent on a judgement that then failed is known to its own rank alone.
        """
        usages = list(usages)
        for name in ("calls", "tokens", "cost"):
            told = sum(usage.get(name, 0.0) for usage in usages)
            self.settled.update({name: max(told, self.unsettled[name])})
        self.unsettled.clear()

    def _add(self, amounts: Mapping[str, float]) -> None:
        self.unsettled.update(amounts)
        for name, limit in self.limits.items():
            if self.spent(name) >= self.warn_at * limit and name not in self._warned:
                self._warned.add(name)
                logger.warning("the judge has used %g of %g %s", self.spent(name), limit, name)
