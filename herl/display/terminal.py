"""The one place where text reaches the terminal: printed lines, log lines, warnings and tracebacks.

Text of rows, answers, judges and models may hold escape sequences, which write to the clipboard, rename the
window or hide a line. `prompt_text.visible` turns each control character into a symbol. Nothing else in herl
calls print.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import warnings
from copy import copy
from typing import Any, TextIO

from herl.prompt_text import visible


def say(text: str, stderr: bool = False) -> None:
    """Prints a line, or several."""
    print(visible(text), file=sys.stderr if stderr else sys.stdout)


class VisibleStream:
    """A stream for the words of others, such as Hydra: control characters become visible in what they write.

    Args:
        stream: Where it goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text and returns its length."""
        self._stream.write(visible(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class VisibleFormatter(logging.Formatter):
    """Log lines whose texts have no control characters, otherwise as another formatter writes them.

    Args:
        inner: That formatter; None for logging's default.
    """

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self.inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        shown = copy(record)
        shown.msg, shown.args = visible(record.getMessage()), None
        if record.exc_info:
            shown.exc_text = visible(self.inner.formatException(record.exc_info))
        if record.stack_info:
            shown.stack_info = visible(record.stack_info)
        return self.inner.format(shown)  # which may add colors


def guard_errors() -> None:
    """Makes tracebacks, warnings and characters that the terminal lacks harmless, from now on."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's stream has no encoding
            stream.reconfigure(errors="backslashreplace")
    formatwarning = warnings.formatwarning
    if not getattr(formatwarning, "shown", False):

        def shown(*arguments: Any, **named: Any) -> str:
            return visible(formatwarning(*arguments, **named))

        shown.shown = True  # type: ignore[attr-defined]
        warnings.formatwarning = shown
    sys.excepthook = _say_error
    threading.excepthook = lambda failed: _say_error(failed.exc_type, failed.exc_value, failed.exc_traceback)


def guard_logs() -> None:
    """Guards the handlers that all loggers have now, and the one that logging uses without any."""
    known = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in [handler for logger in known for handler in logger.handlers] + [logging.lastResort]:
        if handler is not None and not isinstance(handler.formatter, VisibleFormatter):
            handler.setFormatter(VisibleFormatter(handler.formatter))


def _say_error(kind: Any, error: Any, trace: Any) -> None:
    say("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), stderr=True)
