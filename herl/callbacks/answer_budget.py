"""Ends a run once it has sampled a number of answers: the budget at which methods are compared."""

from __future__ import annotations

from typing import Any

import lightning as L

from herl.errors import ConfigError
from herl.module import HerlModule


class AnswerBudget(L.Callback):
    """Stops training after the batch in which the budget is reached; a resumed run beyond it at once.

    Args:
        answers: Sampled answers, attempts and revisions together; None for no limit.
    """

    def __init__(self, answers: int | None = None) -> None:
        if answers is not None and answers < 1:
            raise ConfigError(f"callbacks.answer_budget.answers: expected at least 1, or null, got {answers}")
        self.answers = answers

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Tells the module, whose learning rate may fall over the run."""
        assert isinstance(module, HerlModule)
        module.answer_budget = self.answers

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._stop_if_spent(trainer, module)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._stop_if_spent(trainer, module)

    def _stop_if_spent(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HerlModule)
        if self.answers is not None and module.counts["answers_sampled"] >= self.answers:
            trainer.should_stop = True
