"""Saves a run that ends because its judge cannot go on: nothing that was learnt is lost."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from herl.errors import JudgeStop

logger = logging.getLogger(__name__)


class SaveOnStop(L.Callback):
    """Writes a checkpoint when judging stops the run, for a spent budget or too many abstentions.

    The batch that could not be judged counts as not begun: a resumed run samples it again.

    Args:
        path: Of the checkpoint.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, JudgeStop) and trainer.state.fn == TrainerFn.FITTING:
            trainer.save_checkpoint(self.path)
            if trainer.is_global_zero:
                logger.warning("the run stops; resume it with resume=%s", self.path)
