"""The attention mask of a row in the form flex attention needs: a function, and the blocks it allows.

A column sees two intervals of columns: part of its context, and its own piece (the context or answer that it
belongs to) up to itself. Both follow from where contexts and answers begin and end, so no [T, T] tensor is
needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

FLEX_BLOCK = 128
"""Columns of a flex attention block; rows are padded to a multiple of it."""

MIN_COLUMNS = 2 * FLEX_BLOCK
"""Fewest columns of a row. For shorter ones, flex attention would choose its decoding kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedContext:
    """Where a context and the answers that follow it lie in a row."""

    start: int
    """First column of the context."""
    answers: tuple[int, ...]
    """First column of the first answer, then the column after each answer."""

    @property
    def end(self) -> int:
        """The column after the last answer."""
        return self.answers[-1]

    @property
    def answer_lengths(self) -> list[int]:
        """Tokens of each answer."""
        return [end - start for start, end in pairwise(self.answers)]


def padding(length: int) -> int:
    """Returns how many columns to pad a row by, so that flex attention sees few different lengths."""
    return max(MIN_COLUMNS, -(-length // FLEX_BLOCK) * FLEX_BLOCK) - length


def block_mask(contexts: Sequence[SharedContext], window: int | None, device: torch.device) -> BlockMask:
    """Returns the mask of a padded row. A padding column sees only itself.

    Args:
        contexts: The layout of the row, without its padding.
        window: How many tokens each token sees at most, itself included; None for no limit.
        device: Device of the row.
    """
    bounds = _bounds(contexts)
    partial, full = _blocks(bounds, window)
    tables = [
        on_device(torch.from_numpy(table), device)[None, None]
        for table in (*_ordered(partial), *_ordered(full))
    ]
    length = bounds.shape[1]
    return BlockMask.from_kv_blocks(
        tables[0],
        tables[1],
        tables[2],
        tables[3],
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=_sees(on_device(torch.from_numpy(bounds), device), window),
        seq_lengths=(length, length),
    )


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a host tensor to a device, without waiting for the GPU's pending work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _sees(bounds: torch.Tensor, window: int | None) -> Any:
    """Returns the mask as a function of columns. It gets compiled, so it must not modify tensors in place."""
    start, border, own = bounds

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        in_own = (key >= own[query]) & (key <= query)
        in_context = (key >= start[query]) & (key < border[query])
        if window is not None:
            in_own = in_own & (query - key < window)
            in_context = in_context & (border[query] - key + query - own[query] < window)
        return in_own | in_context

    return sees


def _bounds(contexts: Sequence[SharedContext]) -> np.ndarray:
    """Returns three columns for each column of the padded row, int32 [3, T]: the first of the context that
    it follows, the one after that context (both 0 within a context), and the first of its piece."""
    length = contexts[-1].end
    length += padding(length)
    bounds = np.zeros((3, length), dtype=np.int32)
    start, border, own = bounds
    own[:] = np.arange(length)
    for context in contexts:
        first = context.answers[0]
        own[context.start : first] = context.start
        start[first : context.end] = context.start
        border[first : context.end] = first
        own[first : context.end] = np.repeat(context.answers[:-1], context.answer_lengths)
    return bounds


def _blocks(bounds: np.ndarray, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns which query blocks see part of which key blocks, and which see all, bool [blocks, blocks]."""
    start, border, own = bounds
    query = np.arange(len(own))
    if window is not None:
        start = np.maximum(start, border + query - own - window + 1)
        own = np.maximum(own, query - window + 1)
    border = np.maximum(border, start)  # an empty interval if the context lies outside the window
    intervals = ((start, border), (own, query + 1))
    touched = sum(
        _counts(low // FLEX_BLOCK, -(-high // FLEX_BLOCK) * (low < high)) for low, high in intervals
    )
    covered = sum(_counts(-(-low // FLEX_BLOCK), high // FLEX_BLOCK) for low, high in intervals)
    every = np.equal(covered, FLEX_BLOCK)
    return np.greater(touched, 0) & ~every, every


def _counts(first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Counts the queries of each block whose [first, end) holds each key block, [blocks, blocks]."""
    count = len(first) // FLEX_BLOCK
    row = np.arange(len(first)) // FLEX_BLOCK * (count + 1)
    begun, ended = (
        np.bincount((row + column)[first < end], minlength=count * (count + 1)) for column in (first, end)
    )
    return (begun - ended).reshape(count, count + 1).cumsum(axis=1)[:, :count]


def _ordered(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each row's number of blocks, and all indices with the row's own blocks first, int32."""
    indices = np.argsort(~blocks, axis=1, kind="stable")
    return blocks.sum(axis=1).astype(np.int32), indices.astype(np.int32)
