"""Checkpoints to resume a killed run from. A complete one exists whenever the run dies."""

from __future__ import annotations

import logging
import os
import time
from itertools import count
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from herl.callbacks.base import HerlCallback
from herl.callbacks.write_checkpoint import write_checkpoint
from herl.distributed import gather
from herl.errors import (
    ConfigError,
    DataError,
    JudgeStop,
    RunStopped,
    SamplerError,
    check_at_least,
)
from herl.files import part_of, put_in_place, remove
from herl.module import HerlModule

logger = logging.getLogger(__name__)
LAST = "last.ckpt"


class Checkpoints(HerlCallback, Checkpoint):
    """Saves between batches, at the end of each epoch, and when a run stops early.

    A checkpoint is written under a temporary name and then renamed; `last.ckpt` links to the newest. The
    batch in which a run stops counts as not begun: a resumed run samples it again, with the same seeds.

    Args:
        dirpath: Folder of the checkpoints.
        every_n_batches: Batches between checkpoints; None to save by time only.
        every_n_minutes: Minutes between checkpoints, by rank 0's clock; None to save by count only.
        keep: Number of newest checkpoints to keep.
    """

    def __init__(
        self,
        dirpath: str,
        every_n_batches: int | None = None,
        every_n_minutes: float | None = 15.0,
        keep: int = 2,
    ) -> None:
        check_at_least("callbacks.checkpoints", 1, every_n_batches=every_n_batches, keep=keep)
        check_at_least("callbacks.checkpoints", 0, every_n_minutes=every_n_minutes)
        self.dirpath = Path(dirpath)
        self.every_n_batches = every_n_batches
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self._begun = False
        self._saved_batches = 0
        self._saved_at = time.monotonic()

    def on_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        self._begun = True
        if trainer.is_global_zero:
            for unfinished in list(self.dirpath.glob("*.ckpt.part")):  # left by a killed run
                remove(unfinished)
        self._saved_batches = module.counts["batches"]
        self._saved_at = time.monotonic()

    def on_batch_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        """Saves the state after the last batch and its validation, if a checkpoint is due."""
        done = module.counts["batches"]
        by_count = self.every_n_batches is not None and done - self._saved_batches >= self.every_n_batches
        minutes = (time.monotonic() - self._saved_at) / 60
        by_time = self.every_n_minutes is not None and minutes >= self.every_n_minutes
        if done > self._saved_batches and gather(by_count or by_time)[0]:
            self._save_between_batches(trainer, done)

    def on_epoch_end(self, trainer: L.Trainer, module: HerlModule) -> None:
        self._save(trainer, f"batch-{module.counts['batches']:08d}-epoch.ckpt")

    def on_error(self, trainer: L.Trainer, module: HerlModule, error: BaseException) -> None:
        """Saves if the run stopped before the policy learned anything from the batch.

        A run that fails before its first batch, say while restoring a checkpoint, has nothing to save.
        """
        stops = JudgeStop | ConfigError | DataError | SamplerError | RunStopped
        if isinstance(error, stops) and trainer.state.fn == TrainerFn.FITTING and self._begun:
            self._save_between_batches(trainer, module.counts["batches"], "-stopped")
            if trainer.is_global_zero:
                logger.warning("the run stops; resume it with resume=%s", self.dirpath / LAST)

    def _save_between_batches(self, trainer: L.Trainer, done: int, suffix: str = "") -> None:
        """Saves as if the current batch had not begun. An interrupted validation is not resumed."""
        loop = trainer.fit_loop.epoch_loop
        batches, validation = loop.batch_progress, loop.val_loop.batch_progress
        live = batches.state_dict(), validation.state_dict()
        for progress in (batches.total, batches.current):
            progress.reset_on_restart()
        batches.is_last_batch = False  # it describes the batch that has begun
        validation.reset()
        self._save(trainer, f"batch-{done:08d}{suffix}.ckpt")
        batches.load_state_dict(live[0])
        validation.load_state_dict(live[1])
        self._saved_batches = done

    def _save(self, trainer: L.Trainer, name: str) -> None:
        """Writes a checkpoint and then the link to it. All ranks must call it.

        Raises:
            TrainingError: it cannot be written; the previous one is still there.
        """
        folder = Path(trainer.strategy.broadcast(str(self.dirpath)))  # each rank may have its own folder
        write_checkpoint(
            trainer,
            folder / name,
            lambda part: self._put_in_place(part, folder / name),
            advice=f"The previous one is intact: free some space, then resume={folder / LAST}",
        )
        self._saved_at = time.monotonic()

    def _put_in_place(self, part: Path, final: Path) -> None:
        """Renames the checkpoint and points the link at it; each step is atomic."""
        final = free_name(final)
        put_in_place(part, final)
        point(final.parent / LAST, final)
        self._forget_old(final)

    def _forget_old(self, newest: Path) -> None:
        others = (path for path in newest.parent.glob("batch-*.ckpt") if path != newest)
        # Those of later batches may be older, after a resume from an earlier one.
        old = sorted(others, key=lambda path: (path.stat().st_mtime_ns, path.name))
        for path in old[: max(0, len(old) - self.keep + 1)]:
            remove(path)


def point(link: Path, target: Path) -> None:
    """Makes a link point to a file or folder beside it, instead of to another one. A folder may be moved."""
    part = part_of(link)
    part.unlink(missing_ok=True)
    part.symlink_to(target.name)
    os.replace(part, link)


def free_name(path: Path) -> Path:
    """Returns an unused name, so the link's old target stays untouched until the link has moved."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in count(1))
    return path if not path.exists() else next(name for name in names if not name.exists())
