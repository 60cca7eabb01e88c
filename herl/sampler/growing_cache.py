"""A key/value cache that is written in place: a token is not a copy of all before it.

transformers' own layers concatenate, for every token and in every layer. Layers of other kinds (sliding
windows, states) are left as they are: they hold no more after a token than before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 16
"""Tokens that buffers grow by when they are full."""


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, [rows, heads, tokens, D]: views of the filled part of two buffers."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Begins with empty buffers."""
        super().lazy_initialization(key_states, value_states)
        self._buffers = [states[:, :, :0] for states in (key_states, value_states)]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes further tokens behind those that are there; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if (missing := end - self._buffers[0].shape[2]) > 0:
            self._buffers = [pad(buffer, (0, 0, 0, missing + ROOM)) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        return self._show(end)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows, in this order; a row may be taken several times."""
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show(self.get_seq_length())

    def _show(self, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Returns an empty cache for a model; only layers of full attention are different from transformers'."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer  # type: ignore[no-untyped-call]
        for layer in cache.layers
    ]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    return cache
