"""Means, maxima and percentiles accumulated over micro-batches, optimizer steps and ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import torch

from herl.distributed import gather
from herl.update.loss.base import Stats

PERCENTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}
MAX_SAMPLES = 1 << 16
"""Maximum number of values a rank sends for percentiles; beyond that, every k-th."""


class RunningStats:
    """Accumulates one statistic per name. NaN is reported, not left out.

    Tensors stay on their device until `compute`, since reading from a GPU makes it wait.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._maxima: dict[str, list[torch.Tensor]] = {}
        self._samples: dict[str, list[torch.Tensor]] = {}

    def add(self, name: str, value: float | torch.Tensor) -> None:
        """Adds one value to a mean."""
        value = value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
        self._sums.setdefault(name, []).append((value, torch.tensor(1)))

    def add_stats(self, stats: Stats) -> None:
        """Adds the loss's statistics of a micro-batch. A mean over nothing is left out."""
        for name, pair in stats.means.items():
            self._sums.setdefault(name, []).append(pair)
        for name, values in stats.maxima.items():
            if len(values):
                self._maxima.setdefault(name, []).append(values.max())
        for name, values in stats.percentiles.items():
            self._samples.setdefault(name, []).append(values)

    def compute(self) -> dict[str, float]:
        """Returns the statistics over all ranks by name, e.g. "ratio_p99". All ranks must call it.

        Whole tables are gathered because a rank may lack a name, say if it trained on no revision.
        """
        totals: dict[str, float] = {}
        counts: Counter[str] = Counter()
        maxima: dict[str, float] = {}
        samples: dict[str, list[torch.Tensor]] = {}
        for own_totals, own_counts, own_maxima, own_samples in gather(self._own()):
            for name, count in own_counts.items():
                totals[name] = totals.get(name, 0.0) + own_totals[name]
                counts[name] += count
            for name, value in own_maxima.items():
                maxima[name] = max(maxima.get(name, value), value, key=_nan_first)
            for name, values in own_samples.items():
                samples.setdefault(name, []).append(values)
        means = {name: totals[name] / count for name, count in counts.items()}
        percentiles = {
            f"{name}_{label}": float(value)
            for name, values in samples.items()
            if len(every := torch.cat(values))
            for label, value in zip(PERCENTILES, _quantiles(every), strict=True)
        }
        return means | maxima | percentiles

    def _own(self) -> tuple[dict[str, float], dict[str, int], dict[str, float], dict[str, torch.Tensor]]:
        """This rank's sums, counts, maxima and samples, in float64."""
        counts = {name: int(sum(_read(count for _, count in pairs))) for name, pairs in self._sums.items()}
        counts = {name: count for name, count in counts.items() if count}
        totals = {name: sum(_read(total for total, _ in self._sums[name])) for name in counts}
        maxima = {name: max(_read(values), key=_nan_first) for name, values in self._maxima.items()}
        maxima = {name: value for name, value in maxima.items() if value != -math.inf}
        samples = {name: _thinned(torch.cat(values).float().cpu()) for name, values in self._samples.items()}
        return totals, counts, maxima, samples


def _read(tensors: Iterable[torch.Tensor]) -> list[float]:
    """Reads numbers from one device in a single transfer."""
    values: list[float] = torch.stack([tensor.double() for tensor in tensors]).tolist()
    return values


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _thinned(values: torch.Tensor) -> torch.Tensor:
    return values[:: max(1, -(-len(values) // MAX_SAMPLES))].contiguous()


def _quantiles(values: torch.Tensor) -> torch.Tensor:
    ordered = values.sort().values  # torch.quantile takes at most 2^24 values
    places = [min(len(ordered) - 1, int(share * len(ordered))) for share in PERCENTILES.values()]
    return ordered[places]
