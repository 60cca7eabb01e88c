"""Wall time by phase of the work."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class PhaseClock:
    """Adds up seconds by phase. Phases that are not nested add up to the time spent."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Adds the time spent in the block to a phase, also when the block raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - started

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds another clock's seconds."""
        for phase, spent in seconds.items():
            self.seconds[phase] += spent
