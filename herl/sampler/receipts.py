"""Proves that an engine holds the weights that were streamed to it, by checksums, whatever its precision.

An engine keeps weights in a layout of its own: projections fused, experts stacked, packed for a processor,
split over ranks. The layout is found out first, once per engine: every tensor of the stream is sent filled
with a color, a number that no other tensor has, and the engine's parameters are searched for colors. A tensor
whose color is nowhere does not arrive, whatever its values: a wrong name, a head that is skipped, experts
that are ignored.

From then on a refresh is proven by sums. `checksum` does not depend on the order of elements, so that of a
parameter must be the sum of those of its tensors, bit for bit: a single element that is one rounding step off
changes it. Weights that a CPU engine has packed beyond reading are read by multiplying with a few unit
vectors: those columns are compared, others at every refresh.

What sums cannot see is order, so weights that arrive and are then misread, and anything but weights, such as
the temperature. That is left to the probe in `herl.callbacks.refresh_sampler`.

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
"""Columns that are compared of a weight that cannot be read as a whole."""
SHOWN = 6
"""Names in a message."""


class Dyed(NamedTuple):
    """What a worker found in one of its parameters after it had loaded the colors."""

    parameter: str
    dtype: str
    by_columns: bool
    """Whether only columns of it are read."""
    colors: Sequence[tuple[int, int]]
    """(color, elements that have it)."""
    strange: bool
    """Whether some elements have no color; zeros do not count, which fill up a shape."""
    changed: bool
    """Whether loading the colors changed it."""


class Layout(NamedTuple):
    """Which tensors make up the parameters of an engine."""

    parameters: Sequence[tuple[bool, Mapping[int, int]]]
    """For each whether it is read by columns, and its tensors: color -> times that the workers hold it.
    Without tensors where the engine computes it, or where it is no weight."""
    nowhere: Sequence[str]
    """Tensors that are in no parameter."""


class Receipts:
    """Sums up a stream of weights, and compares that with the checksums of engines.

    Args:
        shapes: What will be streamed, by name, as tensors without data; tied names share one.
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
        """Returns (name, shape, color) of the tensors that show an engine's layout: see `vllm_worker.dye`."""
        return [(name, list(self._shapes[color]), color) for name, color in self._color_of.items()]

    def expect(self, workers: Sequence[Sequence[Dyed]]) -> None:
        """Notes how an engine holds each tensor, which says what to sum up while streaming."""
        for found in (Dyed(*one) for worker in workers for one in worker):
            for color, _ in found.colors:
                self._kinds[color].add((found.by_columns, found.dtype))

    def learn(self, workers: Sequence[Sequence[Dyed]]) -> Layout:
        """Returns an engine's layout, from what all its workers found.

        A worker may hold all of a tensor or a part: over all workers every element must be there equally
        often.
        """
        self.expect(workers)
        parameters: list[tuple[bool, dict[int, int]]] = []
        computed = []
        for same in zip(*([Dyed(*one) for one in worker] for worker in workers), strict=True):
            by_columns, counts = same[0].by_columns, defaultdict[int, int](int)
            for color, elements in (pair for one in same for pair in one.colors):
                counts[color] += elements
            times = {color: divmod(n, self._size(color, by_columns)) for color, n in counts.items()}
            strange = any(one.strange for one in same)
            if strange and any(one.changed for one in same):
                computed.append(same[0].parameter)
            known = not strange and all(not rest for _, rest in times.values())
            parameters.append((by_columns, {c: whole for c, (whole, _) in times.items()} if known else {}))
        held = {color for _, tensors in parameters for color in tensors}
        absent = [names[0] for color, names in enumerate(self._names) if color not in held]
        if absent and computed:
            logger.warning(
                "The engine computes some parameters from weights (%s). That these weights arrive is shown "
                "by the probe alone, not by checksums: %s",
                listed(computed),
                listed(absent),
            )
        return Layout(parameters, [] if computed else absent)

    def watch(
        self, stream: Iterable[tuple[str, torch.Tensor]], seed: int
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Passes a stream on and sums up what goes by, without waiting for a GPU before its end."""
        sums: dict[tuple[int, bool], torch.Tensor] = {}
        # what this rank's engine holds nothing of may be on another rank
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
            layout: The engine's.
            workers: Of each worker the checksums of its parameters, read at the seed that `watch` got.
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

    It does not depend on the order of elements, zeros add nothing, and it stays on the tensor's device.
    """
    bits, mask = (torch.int16, 2**15 - 1) if tensor.element_size() == 2 else (torch.int32, 2**31 - 1)
    at_once = 2**18 if tensor.device.type == "cpu" else 2**24  # a few times this is needed besides
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for part in tensor.detach().reshape(-1).split(at_once):
        number = part.view(bits).to(torch.int32 if bits is torch.int16 else torch.int64)
        total += (number * (number & mask)).sum(dtype=torch.int64)
    return total


def read(sums: Sequence[torch.Tensor]) -> list[int]:
    """Brings checksums to the host, all at once."""
    return torch.stack([one.to(sums[0].device) for one in sums]).tolist() if sums else []


def columns(width: int, seed: int) -> list[int]:
    """Returns which columns are compared at a refresh: one of each eighth, so that every rank has some."""
    parts = min(COLUMNS, width)
    numbers = random.Random(f"{width}/{seed}")
    return [numbers.randrange(i * width // parts, (i + 1) * width // parts) for i in range(parts)]


def listed(names: Sequence[str]) -> str:
    """Returns names for a message, the first few and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
