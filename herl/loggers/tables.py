"""The one place that knows which loggers show tables and pictures.

W&B, Trackio and any logger with `log_table` and `log_image` get them through those methods, and MLflow gets
artifacts. TensorBoard has no tables: `herl.callbacks.Dashboard` writes texts and pictures for it instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger

from herl.display.may_fail import may_fail

_TOLD: WeakKeyDictionary[Logger, set[str]] = WeakKeyDictionary()
Cell = str | int | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of the same columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@runtime_checkable
class TableLogger(Protocol):
    """What a logger needs in order to get tables and pictures. Lightning's WandbLogger has it."""

    def log_table(
        self, key: str, columns: list[str], data: list[list[Any]], *, step: int | None = None
    ) -> None:
        """Shows rows under a name."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Shows pictures, each [height, width, 3] with 8 bits per channel, under a name."""


def write_table(trainer: L.Trainer, name: str, table: Table, place: int) -> None:
    """Writes a table to every logger of a run that shows tables, on rank 0.

    Args:
        trainer: The run's trainer.
        name: Name of the table; the same at each place.
        table: One without rows is not written.
        place: Point on the x axis.
    """
    for logger in _loggers(trainer) if table.rows else ():
        with _may_fail(name, logger):
            if isinstance(logger, MLFlowLogger):  # appends the rows to those of earlier places
                columns = {column: [row[at] for row in table.rows] for at, column in enumerate(table.columns)}
                logger.experiment.log_table(logger.run_id, columns, f"{name}.json")
            elif isinstance(logger, TableLogger):
                logger.log_table(name, list(table.columns), [list(row) for row in table.rows], step=place)


def write_picture(trainer: L.Trainer, name: str, picture: np.ndarray, place: int) -> None:
    """Writes a picture to the same loggers, on rank 0.

    Args:
        trainer: The run's trainer.
        name: Name of the picture; the same at each place.
        picture: [height, width, 3], 8 bits per channel.
        place: Point on the x axis.
    """
    for logger in _loggers(trainer):
        with _may_fail(name, logger):
            if isinstance(logger, MLFlowLogger):
                logger.experiment.log_image(logger.run_id, picture, key=name, step=place)
            elif isinstance(logger, TableLogger):
                logger.log_image(name, [picture], step=place)


def _may_fail(name: str, logger: Logger) -> AbstractContextManager[None]:
    """One logger that fails must not keep the others from their tables."""
    return may_fail(f"{name} to {type(logger).__name__}", _TOLD.setdefault(logger, set()))


def _loggers(trainer: L.Trainer) -> Iterable[Logger]:
    return trainer.loggers if trainer.is_global_zero else ()
