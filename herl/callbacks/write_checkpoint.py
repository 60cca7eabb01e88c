"""Writes a checkpoint beside its place, then gives it its name: a kill leaves the old one or the new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning as L
from torch.distributed.checkpoint.api import CheckpointException

from herl.distributed import together
from herl.errors import TrainingError
from herl.files import free_space, part_of, remove


def write_checkpoint(
    trainer: L.Trainer,
    final: Path,
    put_in_place: Callable[[Path], None],
    *,
    weights_only: bool = False,
    advice: str,
) -> None:
    """Writes a file, or a folder if the strategy shards it. All ranks must call it.

    Args:
        trainer: The run's trainer.
        final: The checkpoint's name.
        put_in_place: Moves the finished part to its name, on rank 0.
        weights_only: Whether optimizer, counts and callbacks are left out.
        advice: What to do if it cannot be written.

    Raises:
        TrainingError: it cannot be written; names the file, the cause and the free space.
    """
    part = part_of(final)
    try:
        trainer.save_checkpoint(part, weights_only)
        together(lambda: put_in_place(part) if trainer.is_global_zero else None)
    except (OSError, CheckpointException) as error:
        if trainer.is_global_zero:
            remove(part)
        raise TrainingError(
            f"cannot write the checkpoint {final}: {error} ({free_space(final.parent)}). {advice}"
        ) from error
