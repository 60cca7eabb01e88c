"""Brings the policy's weights to the sampler."""

from __future__ import annotations

from typing import Any

import lightning as L

from herl.module import HerlModule


class RefreshSampler(L.Callback):
    """Refreshes the sampler at the start of each epoch and before each validation.

    A sampler that reads the live policy has nothing to copy: it is told the version before every batch.

    Args:
        every_n_steps: Also refresh once that many optimiser steps were taken since the last time.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = every_n_steps
        self.version: int | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.refresh(module)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.refresh(module)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HerlModule)
        stale = module.counts["optimizer_steps"] - (self.version or 0)
        if module.stages.sampler.live or (self.every_n_steps and stale >= self.every_n_steps):
            self.refresh(module)

    def refresh(self, module: L.LightningModule) -> None:
        """Streams the weights into the sampler, unless it has this version already."""
        assert isinstance(module, HerlModule)
        version = module.counts["optimizer_steps"]
        if version != self.version:
            module.stages.sampler.load_weights(module.named_weights(), version)
            self.version = version
