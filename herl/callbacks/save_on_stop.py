"""Saves a run that ends because its judge cannot go on: nothing that was learnt is lost."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from herl.errors import ConfigError, JudgeStop

logger = logging.getLogger(__name__)


class SaveOnStop(L.Callback):
    """Writes a checkpoint when judging stops the run: a spent budget, too many abstentions, a revoked key.

    The batch that could not be judged counts as not begun: a resumed run samples it again.

    Args:
        path: Of the checkpoint.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, JudgeStop | ConfigError) and trainer.state.fn == TrainerFn.FITTING:
            _forget_begun(trainer)
            trainer.save_checkpoint(self.path)
            if trainer.is_global_zero:
                logger.warning("the run stops; resume it with resume=%s", self.path)


def _forget_begun(trainer: L.Trainer) -> None:
    """Counts a batch that was begun as not begun; a validation that broke off is not taken up again."""
    loop = trainer.fit_loop.epoch_loop
    for progress in (loop.batch_progress.total, loop.batch_progress.current):
        progress.reset_on_restart()
    loop.val_loop.batch_progress.reset()
