"""Runs inside vLLM's workers: reloads weights, and reports the contents of the engine's parameters.

In the trainer's process the functions are passed to `collective_rpc`; servers get them as methods of their
workers, through `--worker-extension-cls herl.sampler.vllm_worker.WorkerExtension`. `herl.sampler.receipts`
explains the purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from herl.sampler.receipts import Dyed, checksum, columns, read

Parameter = tuple[str, bool, Callable[[int], torch.Tensor]]
"""Name, whether it is read by columns, and the function that reads it: seed -> elements."""
FIRST = {torch.bfloat16: 0x0080, torch.float16: 0x0400}
LAST = {torch.bfloat16: 0x7F7F, torch.float16: 0x7BFF}
"""Bit patterns of the positive normal numbers; zero is for padding, and subnormals may be flushed to it."""


def settings(worker: Any) -> dict[str, str]:
    """Returns the type that the engine computes in, such as bfloat16."""
    return {"dtype": named(worker.model_runner.model_config.dtype)}


def reload(worker: Any, **source: Any) -> None:
    """Loads new weights, from `weights_iterator` or from the folder `weights_path`."""
    for module in worker.model_runner.get_model().modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None and _device(module).type == "cpu":
            method.moe_kernel = None  # otherwise the engine would not pack new experts for the processor
    worker.reload_weights(**source)


def dye(worker: Any, tensors: Sequence[tuple[str, Sequence[int], int]]) -> list[Dyed]:
    """Loads tensors filled with their colors, and reports the colors in each parameter."""
    model = worker.model_runner.get_model()
    kind, device = worker.model_runner.model_config.dtype, _device(model)
    before = checksums(worker, 0)
    filled = (
        (name, torch.full(tuple(shape), _color(color, kind), dtype=_coded(kind), device=device).to(kind))
        for name, shape, color in tensors
    )
    reload(worker, weights_iterator=filled)
    after = checksums(worker, 0)
    found = []
    for (name, by_columns, elements), old, new in zip(_parameters(model), before, after, strict=True):
        held = elements(0)
        colors, strange = _colors(held, _coded(kind), len(tensors))
        found.append(Dyed(name, named(held.dtype), by_columns, colors, strange, changed=old != new))
    return found


def checksums(worker: Any, seed: int) -> list[int]:
    """Returns a checksum of each of the worker's parameters; `seed` chooses the columns of packed ones."""
    model = worker.model_runner.get_model()
    return read([checksum(elements(seed)) for _, _, elements in _parameters(model)])


class WorkerExtension:
    """The same functions, as methods that a vLLM server offers over /collective_rpc."""

    herl_settings, herl_reload, herl_dye, herl_checksums = settings, reload, dye, checksums


def named(kind: Any) -> str:
    """Returns the name of a torch.dtype, such as bfloat16, for getattr(torch, ...)."""
    return str(kind).removeprefix("torch.")


def _parameters(model: torch.nn.Module) -> Iterator[Parameter]:
    """Yields everything that holds weights: parameters, saved buffers, and a CPU engine's packed weights."""
    seen = set()
    for prefix, module in model.named_modules():
        packed = hasattr(module, "cpu_linear")
        own = dict(module.named_parameters(recurse=False))
        own |= {
            n: b
            for n, b in module.named_buffers(recurse=False)
            if n not in module._non_persistent_buffers_set
        }
        for name, tensor in own.items():
            if id(tensor) in seen or not tensor.numel() or not tensor.is_floating_point():
                continue
            seen.add(id(tensor))
            by_columns = (
                packed and hasattr(module, "embedding_dim") and tensor.dim() == 2
            )  # large, and on a CPU
            read_it = partial(_columns, module, tensor) if by_columns else partial(_whole, tensor)
            yield f"{prefix}.{name}", by_columns, read_it
        # an embedding that is also a head has both the weight and its packed form
        if packed and (not module.weight.numel() or hasattr(module, "embedding_dim")):
            yield f"{prefix} (packed)", True, partial(_packed_columns, module)


def _whole(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    return tensor.detach()


def _columns(module: Any, weight: torch.Tensor, seed: int) -> torch.Tensor:
    return weight.detach()[:, _local_columns(module, weight.shape[1], seed)]


@torch.no_grad()
def _packed_columns(module: Any, seed: int) -> torch.Tensor:
    """Reads columns of a weight by multiplying with unit vectors, which is exact: 1 x weight + 0 + 0 ..."""
    own = (
        getattr(module, name, None) for name in ("input_size_per_partition", "input_size", "embedding_dim")
    )
    width = next(size for size in own if size is not None)
    chosen = _local_columns(module, width, seed)
    units = torch.zeros(len(chosen), width, dtype=module.weight.dtype)
    units[range(len(chosen)), chosen] = 1.0
    product: torch.Tensor = module.cpu_linear(units, module.weight, None)
    return product


def _local_columns(module: Any, width: int, seed: int) -> list[int]:
    """Returns the chosen columns that this rank has, counted from its first."""
    full = getattr(module, "input_size", width)
    first = module.tp_rank * width if full > width else 0
    return [column - first for column in columns(full, seed) if first <= column < first + width]


def _device(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device


def _coded(kind: torch.dtype) -> torch.dtype:
    """Returns the type whose bit patterns are colors: bfloat16 also for an engine in float32."""
    return torch.float16 if kind is torch.float16 else torch.bfloat16


def _color(color: int, kind: torch.dtype) -> float:
    """Returns the number that represents a color: the positive numbers first, then their negatives.

    Raises:
        ValueError: there are more tensors than numbers.
    """
    coded = _coded(kind)
    negative, place = divmod(color, LAST[coded] - FIRST[coded] + 1)
    if negative > 1:
        raise ValueError(f"expected at most {color} tensors")
    number = torch.tensor(FIRST[coded] + place, dtype=torch.int16).view(coded)
    return -float(number) if negative else float(number)


def _colors(held: torch.Tensor, coded: torch.dtype, count: int) -> tuple[list[tuple[int, int]], bool]:
    """Returns (color, elements) of all colors in a tensor, and whether it has other elements but zeros."""
    counts = torch.zeros(2**16, dtype=torch.int64, device=held.device)
    odd = torch.zeros((), dtype=torch.bool, device=held.device)
    for part in held.reshape(-1).split(2**24):
        bits = part.to(coded)
        odd |= (bits.to(part.dtype) != part).any()
        counts += torch.bincount(bits.view(torch.int16).long() & 0xFFFF, minlength=2**16)
    found, strange, span = [], bool(odd), LAST[coded] - FIRST[coded] + 1
    for pattern in counts.nonzero()[:, 0].tolist():
        size, negative = pattern & 0x7FFF, pattern >> 15
        color = size - FIRST[coded] + negative * span
        if FIRST[coded] <= size <= LAST[coded] and color < count:
            found.append((color, int(counts[pattern])))
        elif size:
            strange = True
    return found, strange
