"""Warns when a run is going wrong: the policy collapses, or there is nothing left to learn from."""

from __future__ import annotations

import logging

import lightning as L

from herl.callbacks.base import HerlCallback
from herl.errors import TrainingError, check_at_least
from herl.metrics.step import Step
from herl.module import HerlModule

logger = logging.getLogger(__name__)


class Alarms(HerlCallback):
    """Watches metrics of the training batches; None switches a limit off.

    An alarm goes off once a limit has been broken for `patience` batches in a row, and rearms when the limit
    is met again. It is logged as a warning and counted in `progress/alarms_<name>`.

    Args:
        entropy_below: Mean entropy of the policy's tokens, in nats.
        truncated_above: Share of attempts cut off at the token limit.
        identical_above: Share of groups in which all attempts are the same.
        zero_signal_above: Share of groups that carry no gradient.
        kl_above: KL to the reference policy, in nats per token, for losses that use a reference.
        patience: Batches in a row that must break a limit.
        stop: Whether an alarm ends the run with an error.
    """

    def __init__(
        self,
        entropy_below: float | None = 0.01,
        truncated_above: float | None = 0.95,
        identical_above: float | None = 0.9,
        zero_signal_above: float | None = 0.95,
        kl_above: float | None = 10.0,
        patience: int = 5,
        stop: bool = False,
    ) -> None:
        check_at_least("callbacks.alarms", 1, patience=patience)
        self.limits = {
            "entropy": ("update/entropy", entropy_below, -1.0),
            "truncated": ("train/truncated", truncated_above, 1.0),
            "identical": ("train/identical_groups", identical_above, 1.0),
            "zero_signal": ("train/zero_signal_groups", zero_signal_above, 1.0),
            "kl": ("update/kl_to_reference", kl_above, 1.0),
        }
        """By name: (curve, limit, +1 for an upper limit or -1 for a lower one)."""
        self.patience = patience
        self.stop = stop
        self.broken: dict[str, int] = {}

    def state_dict(self) -> dict[str, int]:
        """Returns how many batches in a row each limit has been broken."""
        return dict(self.broken)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restores the counts."""
        self.broken = dict(state_dict)

    def on_step(self, trainer: L.Trainer, module: HerlModule, step: Step) -> None:
        for name, (curve, limit, sign) in self.limits.items():
            value = step.metrics.get(curve)
            if limit is None or value is None:
                continue
            self.broken[name] = self.broken.get(name, 0) + 1 if sign * (value - limit) > 0 else 0
            if self.broken[name] != self.patience:
                continue
            module.counts[f"alarms_{name}"] += 1
            side = "above" if sign > 0 else "below"
            message = (
                f"alarm: {curve} was {side} {limit:g} for {self.patience} batches in a row, now {value:.4g} "
                f"(callbacks.alarms.{name}_{side})"
            )
            if self.stop:
                raise TrainingError(message)
            if trainer.is_global_zero:
                logger.warning(message)
