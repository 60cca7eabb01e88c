"""Ends a run between two batches on a signal: Ctrl-C, SIGTERM or SLURM's warning."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from herl.callbacks.base import HerlCallback
from herl.distributed import gather, rank, world_size
from herl.errors import RunStopped
from herl.module import HerlModule
from herl.rollout.improve import Trajectory

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopOnSignal(HerlCallback):
    """Stops training before the next batch, on all ranks together; a checkpoint resumes from there.

    The first Ctrl-C lets the batch finish, the second ends the process. After SIGUSR1, which SLURM sends
    before the time limit (`sbatch --signal=USR1@300`), `herl fit` also puts the job back in the queue.

    A measurement before, after or without training has nothing to save, so it stops at once. On several
    ranks it stops before the next batch of held-out prompts.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._at_once = False

    def on_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        self._listen(at_once=False)

    def on_heldout_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._listen(at_once=world_size() == 1)

    def _listen(self, at_once: bool) -> None:
        self._received, self._at_once = None, at_once
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received is not None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        if rank() == 0:  # logging and print are not safe in a handler
            when = "now" if self._at_once else "before the next batch"
            hint = " (press again to stop at once)" if number == signal.SIGINT and not self._at_once else ""
            message = f"\nherl: {self._received.name}: the run stops {when}{hint}\n"
            os.write(2, message.encode())
        if self._at_once:  # a judge may keep the batch waiting for hours
            self._stop(self._received)

    def on_batch_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        self._stop_if_asked()

    def on_heldout_batch(self, trainer: L.Trainer, module: HerlModule, batch_idx: int) -> None:
        if trainer.state.fn != TrainerFn.FITTING:  # in training, the checkpoint comes after the validation
            self._stop_if_asked()

    def on_heldout(
        self, trainer: L.Trainer, module: HerlModule, trajectories: tuple[Trajectory, ...]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._restore()

    def _stop_if_asked(self) -> None:
        received = next(filter(None, gather(self._received)), None)
        if received is not None:
            self._stop(received)

    def _stop(self, received: signal.Signals) -> NoReturn:
        raise RunStopped(f"stopped by {received.name}", received)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_error(self, trainer: L.Trainer, module: HerlModule, error: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def requeue(stop: RunStopped) -> None:
    """Puts a SLURM job back in the queue after SLURM's warning, once its checkpoint is written."""
    job = os.environ.get("SLURM_JOB_ID")
    if stop.signal == signal.SIGUSR1 and job is not None:
        subprocess.run(["scontrol", "requeue", job], check=False)
