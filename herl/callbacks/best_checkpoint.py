"""Keeps the policy that did best on held-out prompts."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from herl.callbacks.base import HerlCallback


class BestCheckpoint(HerlCallback, ModelCheckpoint):
    """Writes the weights after each validation in training that is better than all before it.

    The weights alone: to be validated, exported or trained anew, not to go on with the same run.

    Args:
        dirpath: Folder of the checkpoint.
        monitor: The number to be maximised.
    """

    def __init__(self, dirpath: str, monitor: str = "heldout/reward") -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode="max",
            save_weights_only=True,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Does nothing where no held-out answer could be judged."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def keep_if_best(self, trainer: L.Trainer, score: float) -> None:
        """Takes in a validation after training, in which Lightning saves nothing. All ranks must call it."""
        if self.best_model_score is not None and score <= float(self.best_model_score):
            return
        path = Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}"
        trainer.save_checkpoint(path, weights_only=True)
        self.best_model_score, self.best_model_path = torch.tensor(score), str(path)
