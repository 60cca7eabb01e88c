"""Means, maxima and percentiles that add up over micro-batches, optimiser steps and ranks."""

from __future__ import annotations

import math

import torch

from herl.distributed import gather
from herl.loss import Stats

PERCENTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}
MOST_SAMPLES = 1 << 16
"""Values that a rank sends for percentiles; of more, every k-th."""


class RunningStats:
    """A number for every name that something was added under. What is no number is shown, not left out."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}
        self._maxima: dict[str, float] = {}
        self._samples: dict[str, list[torch.Tensor]] = {}

    def add(self, name: str, value: float | torch.Tensor) -> None:
        """Adds one value to a mean."""
        self._add_sum(name, float(value), 1)

    def add_stats(self, stats: Stats) -> None:
        """Adds what the loss reports of a micro-batch. A mean over nothing does not appear."""
        for name, (total, count) in stats.means.items():
            self._add_sum(name, float(total), int(count))
        for name, values in stats.maxima.items():
            if len(values):
                self._add_maximum(name, float(values.max()))
        for name, values in stats.percentiles.items():
            self._samples.setdefault(name, []).append(values.float().cpu())

    def compute(self) -> dict[str, float]:
        """Returns the numbers over all ranks, by name: "ratio_p99" for a percentile. All ranks must call it.

        A rank may lack a name, say if it trained on no revision: whole tables are gathered, not numbers.
        """
        merged = RunningStats()
        samples = {name: _thinned(torch.cat(values)) for name, values in self._samples.items()}
        for sums, maxima, sampled in gather((self._sums, self._maxima, samples)):
            for name, (total, count) in sums.items():
                merged._add_sum(name, total, count)
            for name, value in maxima.items():
                merged._add_maximum(name, value)
            for name, values in sampled.items():
                merged._samples.setdefault(name, []).append(values)
        means = {name: total / count for name, (total, count) in merged._sums.items()}
        percentiles = {
            f"{name}_{label}": float(value)
            for name, values in merged._samples.items()
            if len(every := torch.cat(values))
            for label, value in zip(PERCENTILES, _quantiles(every), strict=True)
        }
        return means | merged._maxima | percentiles

    def _add_sum(self, name: str, total: float, count: int) -> None:
        if count:
            before, seen = self._sums.get(name, (0.0, 0))
            self._sums[name] = before + total, seen + count

    def _add_maximum(self, name: str, value: float) -> None:
        before = self._maxima.get(name, value)
        self._maxima[name] = before if math.isnan(before) or value <= before else value


def _thinned(values: torch.Tensor) -> torch.Tensor:
    return values[:: max(1, -(-len(values) // MOST_SAMPLES))].contiguous()


def _quantiles(values: torch.Tensor) -> torch.Tensor:
    ordered = values.sort().values  # torch.quantile takes at most 2^24 values
    places = [min(len(ordered) - 1, int(share * len(ordered))) for share in PERCENTILES.values()]
    return ordered[places]
