"""Regular expressions that come from the data, matched against answers within a time limit.

A pattern such as `^(a|aa)+$` can take longer than the age of the universe on a short answer, and Python's
`re` cannot be interrupted. The package `regex` can, and lets other threads run meanwhile. Its version 0 reads
Python's syntax and more: `\\p{Lu}`, `[[:alpha:]]`, and `{e<=1}` behind a group, which allows one error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import regex

from herl.checks.broken import TooSlowError

_T = TypeVar("_T")
SECONDS = 2.0
"""The longest time that one pattern may work on one answer."""
MAX_SIZE = 100_000
"""The most characters, classes and groups that a pattern may have with its repeats written out.

`regex` writes them out when it compiles: `a{1000000000}` takes all memory."""
_PIECE = re.compile(
    r"\\.|\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]|(?P<open>\()|(?P<close>\))|\{(?P<least>\d+)?(?P<comma>,)?(?P<most>\d+)?\}|.",
    re.DOTALL,
)


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> regex.Pattern[str]:
    """Returns the compiled pattern.

    Raises:
        regex.error: the pattern cannot be read, or is too large.
    """
    if (found := size(pattern)) > MAX_SIZE:
        raise regex.error(f"with its repeats written out it has {found} parts, more than {MAX_SIZE}")
    return regex.compile(pattern, regex.VERSION0)


def size(pattern: str) -> int:
    """Returns the number of parts of a pattern with its repeats written out; an open repeat counts once.

    >>> size("(ab){3}c{2,5}")
    14
    """
    groups = [0]
    last = 0
    for piece in _PIECE.finditer(pattern):
        if piece["open"]:
            groups.append(0)
            last = 0
        elif piece["close"]:
            last = 1 + groups.pop()
            groups = groups or [0]
            groups[-1] += last
        elif piece["least"] or piece["most"]:
            times = max(int(piece["least"] or 0), int(piece["most"] or 0), 1)
            groups[-1] += (times - 1) * last
            last *= times
        else:
            last = 1
            groups[-1] += 1
    return sum(groups)


def found(pattern: str, text: str) -> bool:
    """Whether the pattern matches somewhere in the text.

    Raises:
        TooSlowError: it took longer than `SECONDS`.
    """
    return _timed(lambda limit: compiled(pattern).search(text, timeout=limit, concurrent=True) is not None)


def count(pattern: str, text: str) -> int:
    """Returns the number of matches that do not overlap.

    Raises:
        TooSlowError: it took longer than `SECONDS`.
    """
    matches = compiled(pattern).finditer
    return _timed(lambda limit: sum(1 for _ in matches(text, timeout=limit, concurrent=True)))


def groups(pattern: str, text: str) -> list[str | tuple[str, ...]]:
    """Returns all matches that do not overlap, as `re.findall` does: texts, or tuples of several groups.

    Raises:
        TooSlowError: it took longer than `SECONDS`.
    """
    found: list[str | tuple[str, ...]] = _timed(
        lambda limit: compiled(pattern).findall(text, timeout=limit, concurrent=True)
    )
    return found


def without(pattern: str, text: str) -> str:
    """Returns the text without any match of the pattern.

    Raises:
        TooSlowError: it took longer than `SECONDS`.
    """
    rest: str = _timed(lambda limit: compiled(pattern).sub("", text, timeout=limit, concurrent=True))
    return rest


def _timed(work: Callable[[float], _T]) -> _T:
    """Gives the work `SECONDS` of this thread's time.

    `regex` measures the time of the whole process, which passes faster while other threads compute. If the
    limit struck too early for that reason, the work gets one more try with more.
    """
    started = time.thread_time()
    for limit in (SECONDS, 8 * SECONDS):
        try:
            return work(limit)
        except TimeoutError:
            if time.thread_time() - started > SECONDS / 2:
                break
    raise TooSlowError(f"the pattern took longer than {SECONDS:g} s on this answer")
