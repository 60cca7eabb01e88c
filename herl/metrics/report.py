"""Numbers for Lightning: callbacks such as the best checkpoint and the progress bar read them there."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L

SHOWN = ("train/reward", "revision/reward", "heldout/reward")
"""On the progress bar."""


def log_to_lightning(module: L.LightningModule, metrics: Mapping[str, float]) -> None:
    """Makes metrics known to callbacks and the progress bar; every rank has the same.

    Numbers by criterion and by category are left out, since there are too many: they are curves alone.
    """
    for name, value in metrics.items():
        if not name.partition("/")[0].endswith(("_criterion", "_category")):
            module.log(name, value, logger=False, prog_bar=name in SHOWN, batch_size=1)
