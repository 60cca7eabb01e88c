"""Wall time by phase of the work."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class PhaseClock:
    """Adds up seconds by phase. Phases that are not nested add up to the time spent."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

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
        self.seconds.update(seconds)
