"""Ends a run once it has sampled a given number of answers: the budget at which methods are compared."""

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
    """

    def __init__(self, answers: int | None = None) -> None:
        if answers is not None and answers < 1:
            raise ConfigError(f"callbacks.answer_budget.answers: expected at least 1, or null, got {answers}")
        self.answers = answers

    def share_spent(self, counts: Mapping[str, int]) -> float:
        """Returns the share of the budget spent. The learning rate may decay over it (`EndsRun`)."""
        return counts.get("answers_sampled", 0) / self.answers if self.answers is not None else 0.0

    def on_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        self._stop_if_spent(trainer, module)

    def on_step(self, trainer: L.Trainer, module: HerlModule, step: Step) -> None:
        self._stop_if_spent(trainer, module)

    def _stop_if_spent(self, trainer: L.Trainer, module: HerlModule) -> None:
        if self.share_spent(module.counts) >= 1.0:
            trainer.should_stop = True
