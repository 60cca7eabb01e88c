"""Linear layers for sampling on a CPU: weights in oneDNN's own layout, brought there once for many tokens.

A step of sampling multiplies every weight with a few rows. MKL, which torch calls otherwise, rearranges the
weights each time, which takes longer than the product (`tools/bench/sampler.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import Linear

FEWEST = 2**23
"""Weights from which on packing pays, 32 MiB: fewer stay in a core's cache from token to token."""


@contextmanager
def packed_linears(model: torch.nn.Module, rows: int) -> Iterator[None]:
    """Within the block the model's linear layers compute by packed copies of their present weights.

    Only for passes without gradient: others are refused. Layers that are not plain float32 ones on a CPU are
    left as they are, and all of them where they fit into the cache.

    Args:
        model: Its weights must not change within the block.
        rows: Tokens of a typical pass.
    """
    layers = [layer for layer in model.modules() if type(layer) is Linear and _packable(layer)]
    if sum(layer.weight.numel() for layer in layers) < FEWEST:
        layers = []
    try:
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
            vars(layer)["forward"] = partial(_product, packed, layer.bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _packable(layer: Linear) -> bool:
    return (
        "forward" not in vars(layer)  # someone else's
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
    )


def _product(weight: torch.Tensor, bias: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled():
        raise RuntimeError("expected torch.no_grad() while sampling: packed weights carry no gradient")
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product
