"""Keeps the policy that scored best on held-out prompts."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from weakref import proxy

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from herl.callbacks.base import HerlCallback
from herl.callbacks.checkpoints import free_name, point
from herl.callbacks.gold_judges import GoldJudges
from herl.callbacks.write_checkpoint import write_checkpoint
from herl.errors import ConfigError, did_you_mean, nearest
from herl.files import part_of, put_in_place, remove
from herl.module import HerlModule
from herl.trainer_callbacks import callbacks_of

SOMETIMES = ("heldout/clipped_reward", "heldout/thinking_tokens", "heldout/no_answer", "heldout/failed_calls")
"""Curves that a validation has only if some answer needs them."""
OF_VALIDATIONS = ("heldout", "gold", "gaming")
"""First parts of the names of the curves that a validation has."""


class BestCheckpoint(HerlCallback, ModelCheckpoint):
    """Writes the weights after each validation during training that beats all earlier ones.

    It saves only the weights, to validate, export or start a new training run. It cannot resume the same run.
    Whenever the process dies, the last one or the new one is there. A sharded one is a folder, which cannot
    replace another in one step, so its name is a link.

    Args:
        dirpath: Folder of the checkpoint.
        monitor: The curve to maximize, such as heldout/reward or gold/<name>/reward of a gold judge.
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
        """Does nothing if no held-out answer could be judged.

        Raises:
            ConfigError: there is no such curve.
        """
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
        elif getattr(pl_module, "trains", False) and "heldout/reward" in trainer.callback_metrics:
            self._check_monitor(trainer)

    def _check_monitor(self, trainer: L.Trainer) -> None:
        """Raises if the monitored curve is not there: before training if it would be one of a validation,
        else at the first validation during training, since a step or a user's callback may bring it until
        then. A curve that only some validations have, or that a gold judge abstained from, is no error."""
        name = str(self.monitor)
        gold = [one.curves for one in callbacks_of(trainer, GoldJudges)]
        if name in SOMETIMES or any(name in curves for curves in gold):
            return
        known = sorted({*trainer.callback_metrics, *chain.from_iterable(gold)})
        family = nearest(name.partition("/")[0], OF_VALIDATIONS)  # itself, or a typo of one
        if family is not None or trainer.state.fn == TrainerFn.FITTING:
            raise ConfigError(
                f"callbacks.best_checkpoint.monitor: expected a curve, got '{name}', which this run does not "
                f"have.{did_you_mean(name, known)} There are {', '.join(known)}"
            )

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
    point(final, sharded)
    for old in final.parent.glob(f"{final.stem}-sharded*{final.suffix}"):
        if old != sharded:
            remove(old)
