"""Linear layers for sampling under autocast on a GPU: weights are cast to its type once, for many tokens.

Autocast casts every weight in every pass. That is cheap next to an update but most of a decoding step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import Linear
from torch.nn.functional import linear


class CastLinears:
    """Copies of a model's linear weights, refreshed whenever the model is about to sample.

    The copies keep their place in memory, so that steps recorded with them can be replayed.
    """

    def __init__(self) -> None:
        self._copies: dict[Linear, list[torch.Tensor]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(copy.nbytes for copies in self._copies.values() for copy in copies)

    def clear(self) -> None:
        """Frees the copies."""
        self._copies.clear()

    @contextmanager
    def used(self, model: torch.nn.Module) -> Iterator[None]:
        """Within the block, the model's float32 linear layers use cast copies of their weights.

        Only for passes without gradient, and only while the weights do not change. Does nothing without
        autocast.
        """
        kind = next(model.parameters()).device.type
        layers: list[Linear] = []
        if torch.is_autocast_enabled(kind):
            layers = [layer for layer in model.modules() if type(layer) is Linear and _castable(layer)]
        self._refresh(layers, torch.get_autocast_dtype(kind))
        try:
            for layer in layers:
                vars(layer)["forward"] = partial(_product, *self._copies[layer])
            yield
        finally:
            for layer in layers:
                vars(layer).pop("forward", None)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _refresh(self, layers: list[Linear], dtype: torch.dtype) -> None:
        """Copies the current weights, in place if there are copies already."""
        copies, weights = [], []
        for layer in layers:
            own = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
            kept = self._copies.get(layer, [])
            if [(copy.shape, copy.device, copy.dtype) for copy in kept] != [
                (weight.shape, weight.device, dtype) for weight in own
            ]:
                kept = self._copies[layer] = [torch.empty_like(weight, dtype=dtype) for weight in own]
            copies += kept
            weights += own
        if copies:
            torch._foreach_copy_(copies, weights)


def _castable(layer: Linear) -> bool:
    return layer.weight.dtype == torch.float32 and "forward" not in vars(layer)  # not patched already


def _product(weight: torch.Tensor, *bias_and_inputs: torch.Tensor) -> torch.Tensor:
    *bias, inputs = bias_and_inputs
    if torch.is_grad_enabled():
        raise RuntimeError(
            "expected no gradients while answers are sampled from cast weights; was a sampler's generate() "
            "left unfinished?"
        )
    return linear(inputs.to(weight.dtype), weight, *bias)
