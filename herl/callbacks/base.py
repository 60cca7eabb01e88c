"""Base class of callbacks: its hooks get the module, and each step and validation as a record.

    class Watch(HerlCallback):
        def on_step(self, trainer, module, step):
            print(step.metrics["train/reward"], [len(group.revisions) for group in step.collection.groups])

    trainer = L.Trainer(callbacks=[RefreshSampler(), Watch()])

Lightning calls its own hooks; the overrides here call the typed ones, passing on the return values of
`HerlModule.training_step` and `HerlModule.validation_step`. A callback that overrides one of Lightning's
hooks must call super().
"""

from __future__ import annotations

from typing import Any

import lightning as L

from herl.errors import ConfigError
from herl.metrics.step import Step
from herl.module import HerlModule
from herl.rollout.improve import Trajectory


class HerlCallback(L.Callback):
    """Hooks that do nothing by default. Subclasses override the ones they need."""

    _trajectories: list[Trajectory]  # of the validation so far

    def on_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        """Runs before the first training batch, after any checkpoint has been restored."""

    def on_epoch_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        """Runs before the first batch of a training epoch."""

    def on_batch_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        """Runs before a training batch is sampled."""

    def on_step(self, trainer: L.Trainer, module: HerlModule, step: Step) -> None:
        """Runs after a training batch, when the policy has been updated."""

    def on_epoch_end(self, trainer: L.Trainer, module: HerlModule) -> None:
        """Runs after the last batch of a training epoch."""

    def on_heldout_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        """Runs before a validation."""

    def on_heldout_batch(self, trainer: L.Trainer, module: HerlModule, batch_idx: int) -> None:
        """Runs after a batch of held-out prompts."""

    def on_heldout(
        self, trainer: L.Trainer, module: HerlModule, trajectories: tuple[Trajectory, ...]
    ) -> None:
        """Runs after a validation.

        Args:
            trainer: Its `state.fn` tells a validation during training from a separate one.
            module: The module that holds the policy.
            trajectories: All attempts at held-out prompts with their revisions, in the order of the prompts.
        """

    def on_error(self, trainer: L.Trainer, module: HerlModule, error: BaseException) -> None:
        """Runs when a run ends with an error."""

    # Lightning's hooks

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.on_start(trainer, _herl(pl_module))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.on_epoch_start(trainer, _herl(pl_module))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.on_batch_start(trainer, _herl(pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.on_step(trainer, _herl(pl_module), outputs["step"])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.on_epoch_end(trainer, _herl(pl_module))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._trajectories = []
        self.on_heldout_start(trainer, _herl(pl_module))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._trajectories += outputs["heldout"].trajectories
        self.on_heldout_batch(trainer, _herl(pl_module), batch_idx)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        trajectories, self._trajectories = tuple(self._trajectories), []
        self.on_heldout(trainer, _herl(pl_module), trajectories)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        super().on_exception(trainer, pl_module, exception)
        if isinstance(pl_module, HerlModule):  # else an error of ours would hide this one
            self.on_error(trainer, pl_module, exception)


def _herl(module: L.LightningModule) -> HerlModule:
    if not isinstance(module, HerlModule):
        raise ConfigError(f"callbacks of herl: expected a HerlModule, got a {type(module).__name__}")
    return module
