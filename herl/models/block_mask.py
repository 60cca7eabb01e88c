"""Which columns of a row see which, as flex attention wants it: a function, and the blocks it allows.

A column sees two intervals of columns: a part of its context, and its piece (the context or the answer it
belongs to) up to itself. Both come from where contexts and answers begin and end, so no [T, T] tensor exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Columns of a block of flex attention; rows are padded to a multiple of it."""

FEWEST = 2 * BLOCK
"""Columns of a row, at least: for fewer, flex attention takes a kernel made for decoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedContext:
    """Where a context and its answers stand in a row, one after another."""

    start: int
    """First column of the context."""
    answers: tuple[int, ...]
    """First column of the first answer, then the column behind each answer."""

    @property
    def end(self) -> int:
        """The column behind the last answer."""
        return self.answers[-1]

    @property
    def answer_lengths(self) -> list[int]:
        """Tokens of each answer."""
        return [end - start for start, end in pairwise(self.answers)]


def padding(length: int) -> int:
    """Returns how many columns to add to a row, so that flex attention sees few different lengths."""
    return max(FEWEST, -(-length // BLOCK) * BLOCK) - length


def block_mask(contexts: Sequence[SharedContext], window: int | None, device: torch.device) -> BlockMask:
    """Returns the mask of a padded row. Columns of the padding see themselves alone.

    Args:
        contexts: The layout of the row before its padding.
        window: Tokens that one sees at most, itself included; None for all.
        device: Of the row.
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
        BLOCK_SIZE=BLOCK,
        mask_mod=_sees(on_device(torch.from_numpy(bounds), device), window),
        seq_lengths=(length, length),
    )


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns a tensor of the host on a device, without waiting for what a GPU is still computing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _sees(bounds: torch.Tensor, window: int | None) -> Any:
    """The mask as a function of columns. It is compiled, so nothing in it may work in place."""
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
    """For each column of the padded row, int32 [3, T]: the first column of the context that it stands behind,
    the column behind that context (both 0 within a context), and the first column of its own piece."""
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
    """Which blocks of queries see some of which blocks of keys, and which see all, bool [blocks, blocks]."""
    start, border, own = bounds
    query = np.arange(len(own))
    if window is not None:
        start = np.maximum(start, border + query - own - window + 1)
        own = np.maximum(own, query - window + 1)
    border = np.maximum(border, start)  # nothing of the context, if it lies outside the window
    intervals = ((start, border), (own, query + 1))
    touched = sum(_counts(low // BLOCK, -(-high // BLOCK) * (low < high)) for low, high in intervals)
    covered = sum(_counts(-(-low // BLOCK), high // BLOCK) for low, high in intervals)
    every = np.equal(covered, BLOCK)
    return np.greater(touched, 0) & ~every, every


def _counts(first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How many queries of each block have a block of keys in their [first, end), [blocks, blocks]."""
    count = len(first) // BLOCK
    row = np.arange(len(first)) // BLOCK * (count + 1)
    begun, ended = (
        np.bincount((row + column)[first < end], minlength=count * (count + 1)) for column in (first, end)
    )
    return (begun - ended).reshape(count, count + 1).cumsum(axis=1)[:, :count]


def _ordered(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the blocks that each row has, and their indices with the others behind them, int32."""
    indices = np.argsort(~blocks, axis=1, kind="stable")
    return blocks.sum(axis=1).astype(np.int32), indices.astype(np.int32)
