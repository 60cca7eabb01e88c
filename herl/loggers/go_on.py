"""Loggers that cannot end a run: a full disk or a lost connection costs curves, not training."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from lightning.pytorch.loggers import Logger

from herl.display.may_fail import may_fail

CALLS = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")
"""What Lightning and herl call during a run."""


def going_on(logger: Logger) -> Logger:
    """Returns the logger, whose calls now warn once instead of raising.

    Its beginning, when Lightning first reads `experiment`, may still fail: nothing has been trained by then.
    """
    told: set[str] = set()
    for name in CALLS:
        setattr(logger, name, _going_on(getattr(logger, name), type(logger).__name__, told))
    return logger


def _going_on(call: Callable[..., Any], name: str, told: set[str]) -> Callable[..., Any]:
    @wraps(call)
    def guarded(*arguments: Any, **named: Any) -> Any:
        with may_fail(f"to {name}", told):
            return call(*arguments, **named)

    return guarded
