"""Keeps the answers of the last validation for the caller that requested it."""

from __future__ import annotations

import lightning as L

from herl.callbacks.base import HerlCallback
from herl.module import HerlModule
from herl.rollout.improve import Trajectory


class KeepHeldout(HerlCallback):
    """Holds attempts at held-out prompts with their revisions; empty before the first validation."""

    def __init__(self) -> None:
        self.trajectories: tuple[Trajectory, ...] = ()

    def on_heldout(
        self, trainer: L.Trainer, module: HerlModule, trajectories: tuple[Trajectory, ...]
    ) -> None:
        self.trajectories = trajectories
