"""The rule for reports: whatever a picture, a table, a page or a tracker raises, the run goes on.

Summaries, checkpoints, recorded answers and data are no reports: what they raise ends the run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from herl.errors import RunStopped

logger = logging.getLogger(__name__)


@contextmanager
def may_fail(
    what: str, told: set[str] | None = None, passes: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turns an error within its block into one line of warning with the cause.

    Args:
        what: The report, in words.
        told: What has been warned of already, and is not again; None to always warn.
        passes: Errors that are raised nevertheless.
    """
    try:
        yield
    except RunStopped:  # a signal may come at any moment
        raise
    except passes:
        raise
    except Exception as error:  # of any library that draws or uploads
        if told is None or what not in told:
            cause = (str(error).splitlines() or [""])[0]
            logger.warning("cannot write %s: %s: %s. The run goes on", what, type(error).__name__, cause)
        if told is not None:
            told.add(what)
