"""Random input of all kinds: each case must end in a value, an abstention with its cause or a HerlError, in time.

`run(cases)` is used by the tests with few cases and by tools/fuzz.py with many.
"""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings

from herl.errors import HerlError
from tests.support.fuzz import (
    answers,
    configurations,
    endpoints,
    patterns,
    replies,
    rows,
    run_folders,
    targets,
)

SECONDS = 60.0
"""Limit of a case. Most take milliseconds."""
SECONDS_PER_MIB = 30.0
"""What a long text may take beyond that, on a busy machine: everything is linear in it."""
KINDS = {
    "rows": (rows.row, rows.ROW),
    "configurations": (configurations.configuration, configurations.CHANGES),
    "targets": (targets.target, targets.CASE),
    "patterns": (patterns.matched, patterns.CASE),
    "answers": (answers.judged, answers.ANSWER),
    "replies": (replies.reply, replies.REPLY),
    "endpoints": (endpoints.asked, endpoints.CASE),
    "run folders": (run_folders.flipped, run_folders.CASE),
}
"""Kind -> what is done with a case, and the strategy that makes it."""
RUNS_SOMETHING = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn")
"""Events of Python's audit that no case may cause."""


@dataclass(slots=True)
class Outcome:
    """How the cases of one kind ended, and the seconds of the slowest."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0


def run(cases, start=0, kinds=tuple(KINDS)):
    """Tries this many cases of each kind and returns their outcomes. Errors other than HerlError propagate."""
    return {name: _run(*KINDS[name], cases, start) for name in kinds}


def _run(work, strategy, cases, start):
    outcome = Outcome()

    @seed(start)
    @settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(strategy)
    def case(value):
        started = time.perf_counter()
        _audit.caught.clear()
        try:
            ended = work(value) or "valid"
        except HerlError as error:
            ended = type(error).__name__ if str(error).strip() else "without a word"
        seconds = time.perf_counter() - started
        assert not _audit.caught, f"{str(value)[:500]!r} caused {_audit.caught}"
        limit = SECONDS + (SECONDS_PER_MIB * len(value) / 2**20 if isinstance(value, str) else 0)
        assert seconds < limit, f"{str(value)[:500]!r} took {seconds:.1f} s"
        outcome.counts[ended] += 1
        outcome.slowest = max(outcome.slowest, seconds)

    with _audit:
        case()
    return outcome


class _Audit:
    """Notes what a case runs. A hook cannot be removed, so it is switched off outside."""

    def __init__(self):
        self.caught, self._on, self._hooked = [], False, False

    def __enter__(self):
        if not self._hooked:
            sys.addaudithook(self._hook)
            self._hooked = True
        self._on = True

    def __exit__(self, *error):
        self._on = False

    def _hook(self, event, arguments):
        if self._on and event in RUNS_SOMETHING:
            self.caught.append((event, str(arguments)[:200]))


_audit = _Audit()
