"""What a run says about its memory: a line at the start, a warning if it needs more than is free, and the
reason if the system has killed one of its processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from subprocess import Popen
from typing import Any

from lightning.fabric.strategies.launchers.subprocess_script import _launch_process_observer

from herl.config.build import Run
from herl.environment import opened
from herl.errors import TrainingError
from herl.models.chat_template import render_prompt
from herl.update.run_memory import RunMemory, run_memory

logger = logging.getLogger(__name__)
WIDTH = 80
PROMPTS = 200
"""Prompts whose length is looked at, evenly spaced."""
LARGEST = 3
"""Parts of the memory that a warning names."""
LEAST_GIB = 0.05
"""Smaller parts are not named."""
KILLED = -9
"""Exit code of a process that the system killed, as it does for lack of memory."""
REAPED_SECONDS = 2.0
"""Time for the system to report a killed process after its connections have closed."""


def memory_of(run: Run, *, trains: bool = True) -> RunMemory | None:
    """Returns the memory that a run needs and what is free; None except on the first rank.

    Args:
        run: A run that has loaded no model yet.
        trains: False for a run that only evaluates.
    """
    if not run.trainer.is_global_zero:
        return None
    data: Any = run.data  # a module of the user's own may name its parts otherwise
    stages = run.module.stages
    tasks, plan = getattr(data, "train" if trains else "heldout", ()), stages.plan
    environment = stages.environment
    some = (
        [tasks[place * len(tasks) // PROMPTS] for place in range(PROMPTS)] if len(tasks) > PROMPTS else tasks
    )
    longest = max(
        (len(render_prompt(stages.tokenizer, opened(environment, task))) for task in some), default=0
    )
    return run_memory(
        run.module,
        run.trainer,
        getattr(data, "prompts_per_batch", 1),
        min(longest or plan.max_prompt_tokens, plan.max_prompt_tokens),
        trains=trains,
    )


def memory_line(memory: RunMemory) -> str:
    """Returns the banner's words: what a run needs of what is free."""
    return f"about {memory.total:.1f} GiB of {memory.free:.1f} free"


def warn_of_memory(memory: RunMemory | None) -> None:
    """Warns if a run needs more memory than is free."""
    if memory is not None and memory.total > memory.free:
        logger.warning("\n".join(complaint(memory)))


def complaint(memory: RunMemory) -> list[str]:
    """Returns at most three lines of 80 columns: what is missing, the largest parts, and what to lower."""
    parts = sorted(memory.parts.items(), key=lambda part: -part[1])
    named = [f"{name.replace('_', ' ')} {gib:.1f}" for name, gib in parts[:LARGEST] if gib >= LEAST_GIB]
    changes = [f"{change.override} ({change.gib:.1f})" for change in memory.changes]
    lines = [
        f"This run needs about {memory.total:.1f} GiB of memory and {memory.free:.1f} are free: it may be "
        "killed.",
        _joined("The largest parts: ", named, ", "),
    ]
    if changes:
        lines.append(_joined("Lower it: ", changes, ", then " if memory.together else " or "))
    return lines


def _joined(start: str, words: list[str], between: str) -> str:
    """Joins as many words as fit into a line."""
    line = start + words[0]
    for word in words[1:]:
        if len(line + between + word) > WIDTH:
            break
        line += between + word
    return line


@contextmanager
def killed_ranks(run: Run, memory: RunMemory | None) -> Iterator[None]:
    """Within the block, the error of a run names the process that the system has killed, if there is one.

    Other processes only notice that a connection is closed; Lightning ends those that do not. Only the
    process that started the others knows how they ended.

    Args:
        run: The run.
        memory: Its memory, if it was estimated.

    Raises:
        TrainingError: in place of a RuntimeError, if a process was killed.
    """
    words = "the system killed a process of this run, probably for lack of memory"
    words += f": it needs about {memory.total:.1f} GiB, and {memory.free:.1f} were free" if memory else ""
    observer, told = logging.getLogger(_launch_process_observer.__module__), _Told(words)
    observer.addFilter(told)
    try:
        yield
    except RuntimeError as error:
        if not _was_killed(getattr(run.trainer.strategy.launcher, "procs", ())):
            raise
        raise TrainingError(words) from error
    finally:
        observer.removeFilter(told)


class _Told(logging.Filter):
    """Replaces what Lightning logs right before it ends the processes of a run of which one was killed."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def filter(self, record: logging.LogRecord) -> bool:
        if f"terminated with code {KILLED}." in record.getMessage():
            logger.warning(self._words)
        return True


def _was_killed(processes: Sequence[Popen[Any]]) -> bool:
    end = time.monotonic() + REAPED_SECONDS
    while processes and time.monotonic() < end:
        if any(process.poll() == KILLED for process in processes):
            return True
        time.sleep(0.1)
    return False
