"""Keeps the answers of the last validation for the caller that requested it, and the result of the first."""

from __future__ import annotations

from typing import Any

import lightning as L

from herl.callbacks.base import HerlCallback
from herl.module import HerlModule
from herl.rollout.improve import Trajectory


class KeepHeldout(HerlCallback):
    """Holds attempts at held-out prompts with their revisions; empty before the first validation."""

    def __init__(self) -> None:
        self.trajectories: tuple[Trajectory, ...] = ()
        self.before: dict[str, Any] = {}
        """Reward and an example of the validation before training. Checkpoints keep them, since a resumed run
        cannot repeat it."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the result before training."""
        return {"before": self.before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.before = state_dict["before"]

    def on_heldout(
        self, trainer: L.Trainer, module: HerlModule, trajectories: tuple[Trajectory, ...]
    ) -> None:
        self.trajectories = trajectories
