"""What the processes of a run tell each other. One process alone needs no setup and pays nothing.

Prompts are shared out over the ranks for sampling and judging; what comes back is gathered, so that from
there on every rank knows the whole batch and computes the same groups, advantages and numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from herl.errors import HerlError

T = TypeVar("T")


def rank() -> int:
    """Returns this process's place among those of the run, from 0."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """Returns the number of processes of the run."""
    return dist.get_world_size() if _several() else 1


def gather(value: T) -> list[T]:
    """Returns every rank's value, in order of rank, on every rank. All ranks must call it."""
    if not _several():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # all places are filled


def gather_results(work: Callable[[], T]) -> list[T]:
    """Runs this rank's share of the work and returns every rank's result.

    Raises:
        HerlError: the first error that any rank had, on every rank: none is left waiting.
    """
    result: tuple[T | None, HerlError | None]
    try:
        result = work(), None
    except HerlError as error:
        result = None, error
    results = gather(result)
    for _, problem in results:
        if problem is not None:
            raise problem
    return [value for value, _ in results]  # type: ignore[misc]  # no error: there is a value


def barrier() -> None:
    """Waits for all ranks."""
    gather(None)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
