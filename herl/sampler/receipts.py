"""Proves by checksums that an engine holds the weights that were streamed to it, in any precision.

An engine keeps weights in its own layout: projections fused, experts stacked, packed for a processor, split
over ranks. The layout is discovered once per engine: every tensor of the stream is sent filled with a color,
a number that no other tensor has, and the engine's parameters are searched for colors. A tensor whose color
is missing never arrives, whatever its values: because of a wrong name, a skipped head, ignored experts.

From then on, sums prove each refresh. `checksum` does not depend on the order of elements, so a parameter's
checksum must equal the sum of its tensors' checksums, bit for bit: one element that is off by one rounding
step changes it. Weights that a CPU engine has packed into an unreadable form are read by multiplying with a
few unit vectors. Only those columns are compared, and different ones at every refresh.

Sums do not detect a wrong order, that is, weights that arrive but are misread, nor anything besides weights,
such as the temperature. The probe in `herl.callbacks.refresh_sampler` covers those.

`Receipts` is the trainer's side; `vllm_worker` is the engine's.
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

logger = logging.getLogger(__name__)
COLUMNS = 8
"""Columns to compare of a weight that cannot be read as a whole."""
SHOWN = 6
"""Most names in a message."""


class Dyed(NamedTuple):
    """A worker's findings about one of its parameters after loading the colors."""

    parameter: str
    dtype: str
    by_columns: bool
    """Whether only some of its columns are read."""
    colors: Sequence[tuple[int, int]]
    """(color, elements that have it)."""
    strange: bool
    """Whether some elements have no color, not counting zeros, which pad a shape."""
    changed: bool
    """Whether loading the colors changed it."""


class Layout(NamedTuple):
    """Which tensors make up the parameters of an engine."""

    parameters: Sequence[tuple[bool, Mapping[int, int]]]
    """For each, whether it is read by columns, and its tensors: color -> copies that the workers hold. It
    has no tensors if the engine computes it, or if it is not a weight."""
    nowhere: Sequence[str]
    """Tensors that no parameter contains."""


class Receipts:
    """Sums up a stream of weights, and compares the sums with the engines' checksums.

    Args:
        shapes: The stream's tensors by name, without data; tied names share one.
    """

    def __init__(self, shapes: Mapping[str, torch.Tensor]) -> None:
        same: dict[int, list[str]] = defaultdict(list)
        for name, shape in shapes.items():
            same[id(shape)].append(name)
        self._names = list(same.values())  # by color
        self._shapes = [shapes[names[0]].shape for names in self._names]
        self._color_of = {name: color for color, names in enumerate(self._names) for name in names}
        self._kinds: dict[int, set[tuple[bool, str]]] = defaultdict(set)
        self._streamed: dict[tuple[int, bool], int] = {}

    def colors(self) -> list[tuple[str, list[int], int]]:
        """Returns (name, shape, color) of the tensors that reveal an engine's layout (`vllm_worker.dye`)."""
        return [(name, list(self._shapes[color]), color) for name, color in self._color_of.items()]

    def expect(self, workers: Sequence[Sequence[Dyed]]) -> None:
        """Notes how an engine holds each tensor, which determines the sums to compute while streaming."""
        for found in (Dyed(*fields) for worker in workers for fields in worker):
            for color, _ in found.colors:
                self._kinds[color].add((found.by_columns, found.dtype))

    def learn(self, workers: Sequence[Sequence[Dyed]]) -> Layout:
        """Returns an engine's layout, from the findings of all its workers.

        A worker may hold all or part of a tensor. Over all workers, every element must occur equally often.
        """
        self.expect(workers)
        parameters: list[tuple[bool, dict[int, int]]] = []
        computed = []
        for same in zip(*([Dyed(*fields) for fields in worker] for worker in workers), strict=True):
            by_columns, counts = same[0].by_columns, defaultdict[int, int](int)
            for color, elements in (pair for dyed in same for pair in dyed.colors):
                counts[color] += elements
            times = {color: divmod(n, self._size(color, by_columns)) for color, n in counts.items()}
            strange = any(dyed.strange for dyed in same)
            if strange and any(dyed.changed for dyed in same):
                computed.append(same[0].parameter)
            known = not strange and all(not rest for _, rest in times.values())
            parameters.append((by_columns, {c: whole for c, (whole, _) in times.items()} if known else {}))
        held = {color for _, tensors in parameters for color in tensors}
        absent = [names[0] for color, names in enumerate(self._names) if color not in held]
        if absent and computed:
            logger.warning(
                "The engine computes some parameters from weights (%s). Only the probe, not checksums, can "
                "show that these weights arrive: %s",
                listed(computed),
                listed(absent),
            )
        return Layout(parameters, [] if computed else absent)

    def watch(
        self, stream: Iterable[tuple[str, torch.Tensor]], seed: int
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Passes a stream through and sums up its tensors, without waiting for a GPU before its end."""
        sums: dict[tuple[int, bool], torch.Tensor] = {}
        # a tensor that this rank's engine does not hold may be on another rank
        everywhere = set().union(*self._kinds.values())
        for name, tensor in stream:
            color = self._color_of.get(name, -1)
            for by_columns, dtype in self._kinds.get(color, everywhere) if color >= 0 else ():
                if (color, by_columns) not in sums:
                    part = tensor[..., columns(tensor.shape[-1], seed)] if by_columns else tensor
                    sums[color, by_columns] = checksum(part.to(getattr(torch, dtype)))
            yield name, tensor
        self._streamed = dict(zip(sums, read(list(sums.values())), strict=True))

    def lost(self, layout: Layout, workers: Sequence[Sequence[int]]) -> list[str]:
        """Returns the names of tensors that an engine does not hold after a refresh.

        Args:
            layout: The engine's layout.
            workers: For each worker, the checksums of its parameters, read with the seed given to `watch`.
        """
        lost = dict.fromkeys(layout.nowhere)
        for (by_columns, tensors), *held in zip(layout.parameters, *workers, strict=True):
            sums = {color: self._streamed.get((color, by_columns)) for color in tensors}
            absent = [color for color, total in sums.items() if total is None]
            expected = sum(times * (sums[color] or 0) for color, times in tensors.items())
            if absent or (tensors and (expected - sum(held)) % 2**64):
                lost |= dict.fromkeys(self._names[color][0] for color in absent or tensors)
        return list(lost)

    def _size(self, color: int, by_columns: bool) -> int:
        shape = self._shapes[color]
        return shape.numel() // shape[-1] * min(COLUMNS, shape[-1]) if by_columns else shape.numel()


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the sum over all elements of (bits x bits without sign), modulo 2**64, as an int64 scalar.

    The sum does not depend on the order of elements, zeros add nothing, and it stays on the tensor's device.
    """
    bits, mask = (torch.int16, 2**15 - 1) if tensor.element_size() == 2 else (torch.int32, 2**31 - 1)
    at_once = 2**18 if tensor.device.type == "cpu" else 2**24  # takes a few times this memory
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for part in tensor.detach().reshape(-1).split(at_once):
        number = part.view(bits).to(torch.int32 if bits is torch.int16 else torch.int64)
        total += (number * (number & mask)).sum(dtype=torch.int64)
    return total


def read(sums: Sequence[torch.Tensor]) -> list[int]:
    """Copies checksums to the host, all at once."""
    return torch.stack([total.to(sums[0].device) for total in sums]).tolist() if sums else []


def columns(width: int, seed: int) -> list[int]:
    """Returns the columns to compare at a refresh: one in each eighth, so that every rank has some."""
    parts = min(COLUMNS, width)
    numbers = random.Random(f"{width}/{seed}")
    return [numbers.randrange(i * width // parts, (i + 1) * width // parts) for i in range(parts)]


def listed(names: Sequence[str]) -> str:
    """Returns names for a message: the first few, and the number of others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
