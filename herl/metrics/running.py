"""Means that add up over micro-batches and steps, on torchmetrics' sums."""

from __future__ import annotations

import torch
from torchmetrics import SumMetric


class RunningMeans:
    """A mean for every name that something was added under. What is no number is shown, not left out."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[SumMetric, SumMetric]] = {}

    def add(self, name: str, value: float | torch.Tensor) -> None:
        """Adds one value."""
        self.add_sum(name, value, 1)

    def add_sum(self, name: str, total: float | torch.Tensor, count: int | torch.Tensor) -> None:
        """Adds the sum of `count` values. Nothing is added, and no mean appears, for a count of 0."""
        if int(count) == 0:
            return
        if name not in self._sums:
            # MeanMetric with nan_strategy="disable" drops its weights in torchmetrics 1.9
            self._sums[name] = SumMetric(nan_strategy="disable"), SumMetric(nan_strategy="disable")
        sums, counts = self._sums[name]
        sums.update(float(total))
        counts.update(float(count))

    def compute(self) -> dict[str, float]:
        """Returns the means by name."""
        return {name: float(s.compute() / n.compute()) for name, (s, n) in self._sums.items()}
