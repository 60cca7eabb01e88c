"""Limits on the cost of judging in one run, and the amount spent so far.

In `herl fit` the training judge has one budget, and each gold judge another with the same limits: a run with
k gold judges may spend k + 1 times as much (`herl.callbacks.gold_judges`).

Each rank has a budget that includes the spending of all ranks up to the last time answers were gathered.
Between two gathers the ranks together can exceed a limit by the amount they have not yet shared.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

from herl.errors import BudgetSpent, check_above

logger = logging.getLogger(__name__)


class Budget:
    """Limits for the whole run, including the parts before a resume; None for no limit.

    Args:
        calls: Requests sent to the judge, including failed ones.
        tokens: Tokens read and written by the judge.
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
        """Spent by all ranks, up to the last gather."""
        self.unsettled: Counter[str] = Counter()
        """Spent by this rank since then."""
        self._warned: set[str] = set()

    def unspent(self) -> Budget:
        """Returns a budget with the same limits, of which nothing is spent."""
        fresh = Budget(warn_at=self.warn_at)
        fresh.limits = dict(self.limits)
        return fresh

    def spent(self, name: str) -> float:
        """Returns the known spending of "calls", "tokens" or "cost"."""
        return self.settled[name] + self.unsettled[name]

    def reserve_call(self) -> None:
        """Charges one call to the budget.

        Raises:
            BudgetSpent: a limit is used up.
        """
        for name, limit in self.limits.items():
            if self.spent(name) >= limit:
                raise BudgetSpent(
                    f"the judge's budget is used up: {self.spent(name):g} of {limit:g} {name}. Raise "
                    f"module.judge_runner.budget.{name} and resume; replies already paid for are cached"
                )
        self._add({"calls": 1})

    def add(self, tokens: int, cost: float) -> None:
        """Charges the tokens and the cost that a call reported."""
        self._add({"tokens": tokens, "cost": cost})

    def settle(self, usages: Iterable[Mapping[str, float]]) -> None:
        """Replaces this rank's unsettled spending with that of all ranks, from their gathered judgements.

        Spending on a judgement that later failed is known only to the rank that paid for it. It counts where
        this rank alone has spent more than all ranks report, so several ranks may spend somewhat more than
        the limit.
        """
        usages = list(usages)
        for name in ("calls", "tokens", "cost"):
            reported = sum(usage.get(name, 0.0) for usage in usages)
            self.settled.update({name: max(reported, self.unsettled[name])})
        self.unsettled.clear()

    def _add(self, amounts: Mapping[str, float]) -> None:
        self.unsettled.update(amounts)
        for name, limit in self.limits.items():
            if self.spent(name) >= self.warn_at * limit and name not in self._warned:
                self._warned.add(name)
                logger.warning("the judge has used %g of %g %s", self.spent(name), limit, name)
