"""Communication between the processes of a run. A single process needs no setup and pays nothing.

Answers are divided among the ranks for sampling and judging. The answers are gathered, so that afterwards
every rank knows the whole batch and computes the same groups, advantages and metrics.

All exchanges of values in a draw or a validation go through `gather`, so a rank that fails there can tell the
others, whatever they wait for: it sends its error in place of the next value (`together`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from herl.errors import HerlError

T = TypeVar("T")
_group: ContextVar[Any] = ContextVar("group", default=None)
"""The group of processes in which this thread speaks; None for that of the run."""
_told: ContextVar[list[Exception] | None] = ContextVar("told", default=None)
"""Within `together`, the errors that all ranks raise already; None outside of it."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a rank that failed sends in place of the value that the others wait for."""

    error: HerlError


def rank() -> int:
    """Returns the index of this process in the run, from 0."""
    return _torch().get_rank() if _several() else 0


def is_first_process() -> bool:
    """Whether this process is the first of its run, by the environment of torchrun, SLURM or Lightning."""
    for names in (("RANK",), ("SLURM_PROCID",), ("LOCAL_RANK", "NODE_RANK")):
        if given := [os.environ[name] for name in names if os.environ.get(name)]:
            return all(int(rank) == 0 for rank in given)
    return True


def world_size() -> int:
    """Returns the number of processes of the run."""
    return _torch().get_world_size() if _several() else 1


def gather(value: T) -> list[T]:
    """Returns every rank's value, in rank order, on every rank. All ranks must call it.

    Raises:
        HerlError: another rank failed before it came here, within a `together`.
    """
    values = _exchanged(value)
    if any(isinstance(one, _Failure) for one in values):
        _raise_first(values)
    return values


def together(work: Callable[[], T]) -> T:
    """Runs this rank's share of the work, waits for the others, and returns this rank's result.

    The work may itself exchange values, also in a further `together`. A rank that fails between two exchanges
    sends its error in place of the next value, which ends the work of the ranks that wait there. A component
    that calls sys.exit has failed, too.

    Raises:
        Exception: the error of the first rank that failed; the other ranks raise it as a HerlError. No
            rank is left waiting for one that failed.
    """
    outer = _told.get()
    told: list[Exception] = [] if outer is None else outer
    before = _told.set(told)
    try:
        result = work()
    except (Exception, SystemExit) as error:  # any must reach the other ranks before it propagates
        if any(error is one for one in told):
            raise
        failure = _portable(error)
        _raise_first(_exchanged(_Failure(failure)), error if isinstance(error, Exception) else failure)
    finally:
        _told.reset(before)
    gather(None)
    return result


def gather_results(work: Callable[[], T]) -> list[T]:
    """Runs this rank's share of the work and returns every rank's result. Raises as `together` does."""
    return gather(together(work))


def new_group(timeout: timedelta | None = None) -> Any:
    """Returns a group of all ranks, over gloo, for another thread (`speaking_in`); None for a process alone.
    All ranks must call it."""
    return _torch().new_group(backend="gloo", timeout=timeout) if _several() else None


@contextmanager
def speaking_in(group: Any) -> Iterator[None]:
    """Within the block, what this thread tells other ranks goes through this group, so that it never meets
    what the main thread tells them meanwhile."""
    before = _group.set(group)
    try:
        yield
    finally:
        _group.reset(before)


def _exchanged(value: Any) -> list[Any]:
    """Every rank's value, in rank order."""
    if not _several():
        return [value]
    values: list[Any] = [None] * world_size()
    _torch().all_gather_object(values, value, group=_group.get())
    return values


def _raise_first(values: list[Any], own: Exception | None = None) -> NoReturn:
    """Raises the error of the first rank that failed: all raise the same one, or only some would save."""
    place, failure = next((place, one) for place, one in enumerate(values) if isinstance(one, _Failure))
    error: Exception = own if own is not None and place == rank() else failure.error
    if (told := _told.get()) is not None:
        told.append(error)
    raise error


def _portable(error: BaseException) -> HerlError:
    """Converts an error to one that can be sent to other processes."""
    if isinstance(error, HerlError):
        return error
    return HerlError(f"rank {rank()} failed with {type(error).__name__}: {error}")


def _several() -> bool:
    distributed = _torch()
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _torch() -> Any:
    """torch.distributed, or None while nothing has imported it: this process is alone then. The checks before
    a run do without torch, which takes seconds to import."""
    return sys.modules.get("torch.distributed")
