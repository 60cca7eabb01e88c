"""CUDA graphs: a decoding step is recorded once and replayed, so that its launches cost almost nothing.

A step takes no arguments and returns nothing: it reads and writes tensors whose memory never moves. The first
steps run eagerly, which also triggers the set-up that libraries do on their first call.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Protocol

import torch

WARM_UPS = 2
"""Steps of a kind that run eagerly before one is recorded."""

MAX_RECORDINGS = 64
"""Most recordings to keep: each takes a few MiB."""

Step = Callable[[], None]

logger = logging.getLogger(__name__)
_capturing = threading.Lock()  # a judging model in another thread may record, too


class Recorder(Protocol):
    """Turns steps into replays."""

    def warm_up(self, step: Step) -> None:
        """Runs a step on the stream that will record it."""

    def record(self, step: Step) -> Step:
        """Returns the replay of a step, without running it."""


class CudaRecorder:
    """Records CUDA graphs. They share one memory pool, since they run one after another."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, step: Step) -> None:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            step()
        current.wait_stream(self._stream)

    def record(self, step: Step) -> Step:
        graph, device = torch.cuda.CUDAGraph(), self._stream.device
        try:
            with (
                _capturing,
                torch.cuda.stream(torch.cuda.current_stream(device)),  # back to it also after a failure
                # thread_local: other threads may use the device in the meantime
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                step()
        except RuntimeError:
            with suppress(RuntimeError):  # torch leaves the allocator in the pool of a failed capture
                torch._C._cuda_endAllocateToPool(device.index, self._pool)
            raise
        replay: Step = graph.replay
        return replay


class Replays:
    """Runs steps by their key: eagerly at first, then as recordings.

    If a step cannot be recorded, all steps run eagerly from then on, which is slower and computes the same.
    The reason is logged once.

    Args:
        recorder: None to run every step eagerly.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._runs: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, Step] = {}

    def clear(self) -> None:
        """Drops all recordings, because memory that they read or write has moved."""
        self._runs.clear()
        self._recordings.clear()

    def run(self, key: Hashable, step: Step) -> None:
        """Runs a step.

        Args:
            key: Distinguishes the step from others: shapes, settings, and all else that it depends on.
            step: The step, to be run eagerly or recorded.
        """
        if self._recorder is None:
            step()
        elif key in self._recordings:
            self._recordings[key]()
        elif self._runs.get(key, 0) < WARM_UPS:
            self._runs[key] = self._runs.get(key, 0) + 1
            self._recorder.warm_up(step)
        else:
            self._record(self._recorder, key, step)

    def _record(self, recorder: Recorder, key: Hashable, step: Step) -> None:
        if len(self._recordings) >= MAX_RECORDINGS:
            del self._recordings[next(iter(self._recordings))]  # the oldest
        try:
            replay = recorder.record(step)
        except RuntimeError as error:
            logger.warning(
                "sampling continues without CUDA graphs, which is slower but draws the same answers: %s",
                _first_cause(error),
            )
            self.clear()
            self._recorder = None
            step()
        else:
            self._recordings[key] = replay
            replay()


def _first_cause(error: BaseException) -> str:
    """Returns the error within a recording; the one at its end only says that something failed."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}".splitlines()[0]
