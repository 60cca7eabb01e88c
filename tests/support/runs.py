"""Runs herl's commands, in this process or in separate ones, and reads back their logs.

A separate process first loads Python and torch, which takes longer than a short run. Use one only to test
ranks, signals, exit codes, and everything that users see.
"""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from unittest import mock

import pytest
from lightning.pytorch.utilities.seed import isolate_rng
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from herl.cli.main import main

SMALL = (
    "experiment=embedded",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=5",
    "trainer.limit_val_batches=1",
    "trainer.val_check_interval=5",
    "data.prompts_per_batch=7",  # uneven shares for two ranks, and for three
    "rollout.attempts_per_prompt=4",
    "rollout.attempt.max_new_tokens=24",
    "module.updates_per_batch=2",
    "module.schedule=constant",  # a decaying one depends on where the run would end
    # Adam's first step is the sign of the gradient, even where that is mere rounding: damp it
    "+optimizer.eps=1e-6",
)
HERL = (sys.executable, "-m", "herl")
CONTINUES_ELSEWHERE = pytest.mark.filterwarnings("ignore:The dirpath has changed from")
"""For tests that read a run's checkpoint in another folder, where Lightning forgets the path of the best one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The outcome of a command in this process."""

    returncode: int
    stdout: str
    stderr: str


def environment(**changes):
    """This process's environment for a run with one thread per process."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return inherited | {"OMP_NUM_THREADS": "1"} | changes


@contextlib.contextmanager
def same_logging():
    """Restores the loggers that a command configures for its whole process."""
    loggers = [logging.getLogger(name) for name in ("", "herl", "lightning.pytorch")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    formatters = [(handler, handler.formatter) for logger in loggers for handler in logger.handlers]
    try:
        yield
    finally:
        for handler, formatter in formatters:
            handler.setFormatter(formatter)
        for logger, level, handlers in before:
            logger.setLevel(level)
            for handler in set(logger.handlers) - set(handlers):
                handler.close()
            logger.handlers[:] = handlers
        for logger in logging.root.manager.loggerDict.values():
            logger.disabled = False  # Hydra disables those that it finds


def herl_here(*arguments, cwd, stdin="", **changes):
    """Runs a herl command in this process, whose state it restores, and returns the outcome.

    An exception that the command does not turn into an error message propagates.
    """
    code = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(same_logging())
        stack.enter_context(isolate_rng())
        stack.enter_context(contextlib.chdir(cwd))
        stack.enter_context(mock.patch.dict(os.environ, changes))
        stack.enter_context(mock.patch.object(sys, "argv", ["herl", *map(str, arguments)]))
        stack.enter_context(mock.patch.object(sys, "path", list(sys.path)))
        stack.enter_context(mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()))))
        stack.enter_context(warnings.catch_warnings())
        stdout = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stderr = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return Ended(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def fit_here(folder, *overrides, small=SMALL):
    """Runs herl fit in this process; returns its curves."""
    done = herl_here("fit", *small, *overrides, f"hydra.run.dir={folder}", cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return curves(folder)


def fit(folder, *overrides, small=SMALL, timeout=300):
    """Runs herl fit in one or more processes; returns its curves."""
    command = [*HERL, "fit", *small, *overrides, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return curves(folder)


def curves(folder):
    """The values of every TensorBoard curve of a run, in order."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def summary(folder):
    return json.loads((folder / "summary.json").read_text())
