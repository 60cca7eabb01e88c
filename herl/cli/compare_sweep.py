"""Ends a sweep (`-m`) with the table and picture of `herl compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf


class CompareSweep(Callback):
    """Compares the runs of a sweep when all have ended. Does nothing for verbs that write no summary."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from herl.report.compare import of_sweep, show
        from herl.report.run_files import read_run

        HydraConfig.instance().set_config(config)  # the folder's name may refer to Hydra's own settings
        folder = Path(str(OmegaConf.select(config, "hydra.sweep.dir")))
        runs = [read_run(job) for job in of_sweep(folder)]
        if len(runs) > 1:
            show(runs, folder / "compare.png")
