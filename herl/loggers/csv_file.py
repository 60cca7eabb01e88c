"""A CSV file of all curves, which keeps those from before a resume."""

from __future__ import annotations

import warnings
from itertools import count
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class CsvFile(CSVLogger):
    """Lightning's `CSVLogger`, which deletes a file that is there, with its rows kept. Each process writes
    metrics.csv; those that earlier processes wrote are metrics-1.csv, metrics-2.csv and so on, in order.

    Args:
        save_dir: The run's folder.
        name: Subfolder; "" for none.
        version: Subfolder of that one.
        flush_logs_every_n_steps: Steps between writes to disk.
    """

    def __init__(
        self, save_dir: str, name: str = "", version: str = "csv", flush_logs_every_n_steps: int = 1
    ) -> None:
        super().__init__(save_dir, name, version, flush_logs_every_n_steps=flush_logs_every_n_steps)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Returns Lightning's writer, which begins with the first call."""
        if self._experiment is not None:
            return self._experiment
        file = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        if file.exists():
            names = (file.with_stem(f"{file.stem}-{number}") for number in count(1))
            file.rename(next(name for name in names if not name.exists()))
        with warnings.catch_warnings():  # of files that would be deleted
            warnings.filterwarnings("ignore", ".*exists and is not empty")
            return super().experiment
