"""Wall time by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class PhaseClock:
    """Adds up seconds by phase. A nested phase pauses the outer one, so the phases of a lap sum to its time.

    A clock belongs to one thread.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.phase = ""
        """The current phase; "" between phases."""
        self.since = time.perf_counter()
        """When `phase` began."""
        self.began = self.since
        """When this process began to work on the run."""
        self._before = 0.0  # seconds of the run in earlier processes
        self._inner = 0.0  # seconds spent in phases nested in the current one
        self._lap: dict[str, float] = {}

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Adds the time spent in the block to a phase, even if the block raises."""
        started, outer, self._inner = time.perf_counter(), self._inner, 0.0
        around = self.phase, self.since
        self.phase, self.since = phase, started
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[phase] += spent - self._inner
            self._inner = outer + spent
            self.phase, self.since = around

    def lap(self) -> dict[str, float]:
        """Returns the seconds by phase since the last call, without phases that took no time."""
        spent = {phase: s - self._lap.get(phase, 0.0) for phase, s in self.seconds.items()}
        self._lap = dict(self.seconds)
        return {phase: seconds for phase, seconds in spent.items() if seconds}

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds another clock's seconds."""
        for phase, spent in seconds.items():
            self.seconds[phase] += spent

    def add_beside(self, seconds: Mapping[str, float]) -> None:
        """Adds seconds that the clock of another thread measured at the same time: no lap counts them."""
        self.add(seconds)
        for phase, spent in seconds.items():
            self._lap[phase] = self._lap.get(phase, 0.0) + spent

    def total(self) -> float:
        """Returns the seconds of the run so far, including those of the processes that it is resumed from."""
        return self._before + time.perf_counter() - self.began

    def resume(self, seconds: float) -> None:
        """Adds the seconds that earlier processes spent on the run, which count up to its checkpoint."""
        self._before = seconds
