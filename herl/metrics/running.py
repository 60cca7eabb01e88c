"""Means that add up over micro-batches and steps, on torchmetrics' sum and count."""

from __future__ import annotations

import torch
from torchmetrics import MeanMetric


class RunningMeans:
    """A weighted mean for every name that something was added under."""

    def __init__(self) -> None:
        self._metrics: dict[str, MeanMetric] = {}

    def add(self, name: str, value: float | torch.Tensor) -> None:
        """Adds one value."""
        self._metric(name).update(float(value))

    def add_sum(self, name: str, total: torch.Tensor, count: torch.Tensor) -> None:
        """Adds the sum of `count` values. Nothing is added, and no mean appears, for a count of 0."""
        if int(count) > 0:
            self._metric(name).update(float(total) / int(count), float(count))

    def compute(self) -> dict[str, float]:
        """Returns the means by name."""
        return {name: float(metric.compute()) for name, metric in self._metrics.items()}

    def _metric(self, name: str) -> MeanMetric:
        return self._metrics.setdefault(name, MeanMetric(nan_strategy="disable"))
