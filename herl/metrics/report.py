"""Passes metrics to Lightning, where callbacks such as the best checkpoint and the progress bar read them."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L

SHOWN = ("train/reward", "revision/reward", "heldout/reward")
"""Metrics shown on the progress bar."""


def log_to_lightning(module: L.LightningModule, metrics: Mapping[str, float]) -> None:
    """Makes metrics available to callbacks and the progress bar; they are the same on every rank.

    Metrics by criterion and by category are left out because there are too many; they only become curves.
    """
    for name, value in metrics.items():
        if not name.partition("/")[0].endswith(("_criterion", "_category")):
            module.log(name, value, logger=False, prog_bar=name in SHOWN, batch_size=1)
