"""Ends a run once it has sampled so many answers or tokens: the budget at which methods are compared."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L

from herl.callbacks.base import HerlCallback
from herl.errors import ConfigError
from herl.metrics.step import Step
from herl.module import HerlModule


class AnswerBudget(HerlCallback):
    """Stops training after the batch that reaches the budget. A resumed run already past it stops at once.

    Args:
        answers: Number of sampled answers, counting attempts and revisions; None for no limit.
        tokens: Number of tokens that the policy sampled for them, in all turns; None for no limit. Replies
            of an environment do not count. It compares methods whose answers differ in length or turns.
    """

    def __init__(self, answers: int | None = None, tokens: int | None = None) -> None:
        for name, limit in (("answers", answers), ("tokens", tokens)):
            if limit is not None and limit < 1:
                raise ConfigError(
                    f"callbacks.answer_budget.{name}: expected at least 1, or null, got {limit}"
                )
        self.answers, self.tokens = answers, tokens

    def share_spent(self, counts: Mapping[str, int]) -> float:
        """Returns the share spent of the limit that ends the run first. The learning rate may decay over it
        (`EndsRun`)."""
        limits = {"answers_sampled": self.answers, "tokens_sampled": self.tokens}
        return max(
            counts.get(name, 0) / limit if limit is not None else 0.0 for name, limit in limits.items()
        )

    def on_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        self._stop_if_spent(trainer, module)

    def on_step(self, trainer: L.Trainer, module: HerlModule, step: Step) -> None:
        self._stop_if_spent(trainer, module)

    def _stop_if_spent(self, trainer: L.Trainer, module: HerlModule) -> None:
        if self.share_spent(module.counts) >= 1.0:
            trainer.should_stop = True
