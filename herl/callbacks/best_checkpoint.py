"""Keeps the policy that scored best on held-out prompts."""

from __future__ import annotations

from pathlib import Path
from weakref import proxy

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from herl.callbacks.base import HerlCallback
from herl.callbacks.checkpoints import free_name, point
from herl.callbacks.write_checkpoint import write_checkpoint
from herl.files import part_of, put_in_place, remove
from herl.module import HerlModule


class BestCheckpoint(HerlCallback, ModelCheckpoint):
    """Writes the weights after each validation during training that beats all earlier ones.

    It saves only the weights, to validate, export or start a new training run. It cannot resume the same run.
    Whenever the process dies, the last one or the new one is there. A sharded one is a folder, which cannot
    replace another in one step, so its name is a link.

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

    def on_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        """Removes what a killed run left unfinished."""
        if trainer.is_global_zero:
            remove(part_of(self._place()))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Does nothing if no held-out answer could be judged."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def keep_if_best(self, trainer: L.Trainer, score: float) -> None:
        """Handles a validation after training, where Lightning saves nothing. All ranks must call it."""
        if self.best_model_score is not None and score <= float(self.best_model_score):
            return
        path = str(self._place())
        self.best_model_score, self.best_model_path = torch.tensor(score), path
        self._save_checkpoint(trainer, path)

    def _place(self) -> Path:
        return Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}"

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        """Replaces Lightning's, which writes to the final name if the temporary folder is on another disk.

        Raises:
            TrainingError: it cannot be written; the one before is still there.
        """
        final = Path(trainer.strategy.broadcast(filepath))
        write_checkpoint(
            trainer,
            final,
            lambda part: _put_in_place(part, final),
            weights_only=True,
            advice="Free some space, then resume the run. The best checkpoint so far is intact",
        )
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.after_save_checkpoint(proxy(self))


def _put_in_place(part: Path, final: Path) -> None:
    if not part.is_dir():
        if final.is_dir():  # of a run that sharded it
            remove(final)
        return put_in_place(part, final)
    sharded = free_name(final.with_stem(f"{final.stem}-sharded"))
    put_in_place(part, sharded)
    if final.is_dir() and not final.is_symlink():  # of an earlier version
        remove(final)
    point(final, sharded)
    for old in final.parent.glob(f"{final.stem}-sharded*{final.suffix}"):
        if old != sharded:
            remove(old)
