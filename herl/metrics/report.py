"""Passes metrics to Lightning, where callbacks such as the best checkpoint and the progress bar read them."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
import torch

SHOWN = ("train/reward", "revision/reward", "heldout/reward")
"""Metrics shown on the progress bar."""


def log_to_lightning(module: L.LightningModule, metrics: Mapping[str, float]) -> None:
    """Makes metrics available to callbacks and the progress bar; they are the same on every rank.

    Metrics by criterion and by category are left out because there are too many; they only become curves.
    """
    chosen = {
        name: value
        for name, value in metrics.items()
        if not name.partition("/")[0].endswith(("_criterion", "_category", "_source"))
    }
    if module.trainer.training:
        # module.log takes half a millisecond per metric, during which a GPU has no work
        module.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in chosen.items()})
        chosen = {name: chosen[name] for name in SHOWN if name in chosen}
    for name, value in chosen.items():
        module.log(name, value, logger=False, prog_bar=name in SHOWN, batch_size=1)
