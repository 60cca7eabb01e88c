"""Keeps the policy that scored best on held-out prompts."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from herl.callbacks.base import HerlCallback


class BestCheckpoint(HerlCallback, ModelCheckpoint):
    """Writes the weights after each validation during training that beats all earlier ones.

    It saves only the weights, to validate, export or start a new training run. It cannot resume the same run.

    Args:
        dirpath: Folder of the checkpoint.
        monitor: The metric to maximize.
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
        """Does nothing if no held-out answer could be judged."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def keep_if_best(self, trainer: L.Trainer, score: float) -> None:
        """Handles a validation after training, where Lightning saves nothing. All ranks must call it."""
        if self.best_model_score is not None and score <= float(self.best_model_score):
            return
        path = Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}"
        trainer.save_checkpoint(path, weights_only=True)
        self.best_model_score, self.best_model_path = torch.tensor(score), str(path)
