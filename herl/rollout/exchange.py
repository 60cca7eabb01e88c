"""Ranks exchange their judged answers: every rank gets all of them, with tokens as arrays.

    answers -> records without tokens + one array of token ids + one of log-probs -> gather -> answers

A tuple of a thousand token ids and their log-probs takes 70 kB, and travels as 12 kB. In arrays they take
8 kB, in memory as on the way, and nothing is made for each token. Log-probs are exchanged in float32, the
type that samplers compute and the update trains with.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import Any, TypeVar, cast, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from herl.distributed import gather_results, world_size
from herl.errors import SamplerError
from herl.types import Judged, Rollout

Number = TypeVar("Number", int, float)


class Numbers(Sequence[Number]):
    """Numbers in an array, as a tuple is read: equal to one, hashed, added and pickled as one.

    Args:
        array: One-dimensional, and never written to again.

    >>> ids = Numbers(np.array([7, 8, 9], dtype=np.int32))
    >>> ids == (7, 8, 9), ids[-1], ids[:2], len(ids)
    (True, 9, (7, 8), 3)
    """

    __slots__ = ("_array",)

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, place: int) -> Number: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Number, ...]: ...
    def __getitem__(self, place: int | slice) -> Number | tuple[Number, ...]:
        found = self._array[place].tolist()
        return tuple(found) if isinstance(place, slice) else cast(Number, found)

    def __iter__(self) -> Iterator[Number]:
        return iter(self._array.tolist())

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._array, dtype=dtype) if copy else np.asarray(self._array, dtype=dtype)

    def __add__(self, other: tuple[Number, ...]) -> tuple[Number, ...]:
        return tuple(self) + tuple(other)

    def __radd__(self, other: tuple[Number, ...]) -> tuple[Number, ...]:
        return tuple(other) + tuple(self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Numbers):
            return np.array_equal(self._array, other._array)
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[type, tuple[list[Number]]]:
        return tuple, (self._array.tolist(),)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses Python's collector of cycles, which records have none of. While thousands of records are made,
    it would search the whole batch again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True, slots=True)
class _Packed:
    answers: list[Judged]
    """Without their tokens."""
    lengths: list[int]
    token_ids: NDArray[np.int32]
    reply_lengths: list[int]
    """Of each reply in turn, over all answers."""
    reply_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]


@collector_paused()
def exchanged(answers: Sequence[Judged]) -> list[Judged]:
    """Returns the answers of all ranks, in rank order, on every rank. All ranks must call it.

    A single process gets its own answers back, unchanged.

    Args:
        answers: This rank's answers.

    Raises:
        SamplerError: an answer has not one log-prob for each token.
    """
    if world_size() == 1:
        return list(answers)
    return list(chain.from_iterable(map(_unpacked, gather_results(lambda: _packed(answers)))))


def _packed(answers: Sequence[Judged]) -> _Packed:
    rollouts = [one.rollout for one in answers]
    replies = [turn.reply_ids for rollout in rollouts for turn in rollout.turns]
    for rollout in rollouts:
        if len(rollout.token_ids) != len(rollout.logprobs):
            raise SamplerError(
                f"answer {rollout.id}: expected one log-prob for each of its {len(rollout.token_ids)} "
                f"tokens, got {len(rollout.logprobs)}"
            )
    return _Packed(
        answers=[replace(one, rollout=_without_tokens(one.rollout)) for one in answers],
        lengths=[len(rollout.token_ids) for rollout in rollouts],
        token_ids=_flat([rollout.token_ids for rollout in rollouts], np.int32),
        reply_lengths=list(map(len, replies)),
        reply_ids=_flat(replies, np.int32),
        logprobs=_flat([rollout.logprobs for rollout in rollouts], np.float32),
    )


def _unpacked(packed: _Packed) -> Iterator[Judged]:
    borders = pairwise(accumulate(packed.lengths, initial=0))
    of_replies = pairwise(accumulate(packed.reply_lengths, initial=0))
    for one, (start, end) in zip(packed.answers, borders, strict=True):
        rollout: Rollout = replace(
            one.rollout,
            # copies: an answer that is kept must not keep those beside it
            token_ids=Numbers[int](packed.token_ids[start:end].copy()),
            logprobs=Numbers[float](packed.logprobs[start:end].copy()),
            turns=tuple(
                replace(turn, reply_ids=Numbers[int](packed.reply_ids[slice(*next(of_replies))].copy()))
                for turn in one.rollout.turns
            ),
        )
        yield Judged(rollout=rollout, judgement=one.judgement)


def _without_tokens(rollout: Rollout) -> Rollout:
    turns = tuple(replace(turn, reply_ids=()) for turn in rollout.turns)
    return replace(rollout, token_ids=(), logprobs=(), turns=turns)


def _flat(values: Sequence[Sequence[int] | Sequence[float]], dtype: DTypeLike) -> NDArray[Any]:
    """All values in one array."""
    return np.fromiter(chain.from_iterable(values), dtype, count=sum(map(len, values)))
