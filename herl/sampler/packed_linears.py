"""Linear layers for sampling on a CPU: weights are packed into oneDNN's layout once, for many tokens.

A sampling step multiplies every weight with a few rows. MKL, which torch calls by default, rearranges the
weights each time, and that takes longer than the product (`tools/bench/sampler.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import Linear

MIN_WEIGHTS = 2**23
"""Fewest weights for which packing pays, 32 MiB: fewer stay in a core's cache from token to token."""


@contextmanager
def packed_linears(model: torch.nn.Module, rows: int) -> Iterator[None]:
    """Within the block, the model's linear layers use packed copies of their current weights.

    Passes with gradient, or after a change of the weights, raise an error. Only plain float32 layers on a CPU
    are packed, and none if all of them fit into the cache.

    Args:
        model: The model that samples.
        rows: Tokens of a typical pass.
    """
    layers = [layer for layer in model.modules() if type(layer) is Linear and _packable(layer)]
    if sum(layer.weight.numel() for layer in layers) < MIN_WEIGHTS or torch.is_autocast_enabled("cpu"):
        layers = []
    try:
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
            vars(layer)["forward"] = partial(_product, layer, packed, layer.weight._version)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _packable(layer: Linear) -> bool:
    return (
        "forward" not in vars(layer)  # not patched already
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
    )


def _product(layer: Linear, packed: torch.Tensor, version: int, inputs: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled() or layer.weight._version != version:
        raise RuntimeError(
            "expected neither gradients nor new weights while answers are sampled from packed ones; was a "
            "sampler's generate() left unfinished?"
        )
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, packed, layer.bias, "none", [], "")
    return product
