"""Means and maxima that add up over micro-batches, optimiser steps and ranks."""

from __future__ import annotations

import math

import torch

from herl.distributed import gather
from herl.loss import Stats


class RunningStats:
    """A number for every name that something was added under. What is no number is shown, not left out."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}
        self._maxima: dict[str, float] = {}

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

    def compute(self) -> dict[str, float]:
        """Returns the means and maxima over all ranks, by name. All ranks must call it.

        A rank may lack a name, say if it trained on no revision: whole tables are gathered, not numbers.
        """
        merged = RunningStats()
        for sums, maxima in gather((self._sums, self._maxima)):
            for name, (total, count) in sums.items():
                merged._add_sum(name, total, count)
            for name, value in maxima.items():
                merged._add_maximum(name, value)
        return {name: total / count for name, (total, count) in merged._sums.items()} | merged._maxima

    def _add_sum(self, name: str, total: float, count: int) -> None:
        if count:
            before, seen = self._sums.get(name, (0.0, 0))
            self._sums[name] = before + total, seen + count

    def _add_maximum(self, name: str, value: float) -> None:
        before = self._maxima.get(name, value)
        self._maxima[name] = before if math.isnan(before) or value <= before else value
