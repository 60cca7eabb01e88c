"""Progress on the screen: how far the run has come, its current phase, and the main rewards."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from herl.callbacks.base import HerlCallback
from herl.clock import PhaseClock
from herl.display.duration import duration
from herl.display.may_fail import may_fail
from herl.display.screen import Screen
from herl.errors import check_at_least
from herl.metrics.report import SHOWN
from herl.metrics.step import Step
from herl.module import HerlModule
from herl.rollout.improve import Trajectory

DOING = {
    "sample": "sampling",
    "judge": "judging",
    "environment": "replying",
    "revise": "revising",
    "update": "updating",
    "wait": "waiting",
    "refresh": "refreshing",
    "probe": "probing",
    "validate": "held-out",
}
"""The clock's phases in words."""
_PHASE_WIDTH = max(map(len, DOING.values())) + len(" 99 s")
"""One width for all phases, so that columns do not come and go with them."""


class ProgressBar(HerlCallback, LightningProgressBar):
    """Shows a live line in a terminal, and otherwise a plain line from time to time. Rank 0, standard error.

    Args:
        seconds_between_lines: Seconds between plain lines when there is no terminal.
    """

    def __init__(self, seconds_between_lines: float = 30.0) -> None:
        super().__init__()
        check_at_least("callbacks.progress", 0, seconds_between_lines=seconds_between_lines)
        self.seconds_between_lines = seconds_between_lines
        self.console = Screen(stderr=True)
        self._enabled = True
        self._told: set[str] = set()
        self._progress: Progress | None = None
        self._started = self._spoke = 0.0
        self._begun_at = 0.0  # share done at the start: a resumed run does not begin at 0

    def disable(self) -> None:
        """Silences the bar; Lightning calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    # Training

    def on_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        self._open(module, "training", module.share_done(trainer.fit_loop.batch_idx + 1))

    def on_step(self, trainer: L.Trainer, module: HerlModule, step: Step) -> None:
        batch = trainer.fit_loop.batch_idx + 1
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        where = f"epoch {trainer.current_epoch + 1}{epochs}, batch {batch}/{trainer.num_training_batches}"
        with may_fail("the progress to the screen", self._told):  # which may be gone
            self._show(trainer, module.share_done(batch), where)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    # Validation outside of training; during training it is a phase like any other

    def on_heldout_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._open(module, "held-out prompts")

    def on_heldout_batch(self, trainer: L.Trainer, module: HerlModule, batch_idx: int) -> None:
        total = trainer.num_val_batches[0]
        if trainer.state.fn == TrainerFn.VALIDATING:
            with may_fail("the progress to the screen", self._told):
                self._show(
                    trainer, (batch_idx + 1) / total, f"held-out prompts, batch {batch_idx + 1}/{total}"
                )

    def on_heldout(
        self, trainer: L.Trainer, module: HerlModule, trajectories: tuple[Trajectory, ...]
    ) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._close()

    def on_error(self, trainer: L.Trainer, module: HerlModule, error: BaseException) -> None:
        self._close()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()

    # The line

    def _open(self, module: HerlModule, what: str, share: float = 0.0) -> None:
        self._close()
        self._begun_at = share
        self._started = self._spoke = time.monotonic()
        if not self._enabled or not self.console.is_terminal:
            return
        self._progress = _FittedProgress(
            _columns(module.clock),
            console=self.console,
            refresh_per_second=4,
            transient=True,
            speed_estimate_period=600,
        )
        self._progress.add_task(what, total=1.0, rewards="", reward="", speed="")
        self._progress.update(self._progress.task_ids[0], completed=share)
        self._progress.start()

    def _show(self, trainer: L.Trainer, share: float, where: str) -> None:
        seen = trainer.callback_metrics
        each = [f"{name.removesuffix('/reward')} {float(seen[name]):.3f}" for name in SHOWN if name in seen]
        rewards = ", ".join(each)
        rate = seen.get("throughput/answers_per_second")
        speed = "" if rate is None else f"{float(rate):.3g} answers/s"
        if self._progress is not None:
            self._progress.update(
                self._progress.task_ids[0],
                completed=share,
                description=where,
                rewards=rewards,
                reward=each[-1] if each else "",
                speed=speed,
            )
        elif self._enabled and time.monotonic() - self._spoke >= self.seconds_between_lines:
            self._spoke = time.monotonic()
            done = share - self._begun_at
            left = (self._spoke - self._started) * (1 - share) / done if done > 0 else 0.0
            parts = [
                where,
                f"{share:.0%} done, {duration(left)} left",
                speed,
                rewards and f"reward: {rewards}",
            ]
            self.console.print("; ".join(filter(None, parts)), soft_wrap=True)

    def _close(self) -> None:
        if self._progress is not None:
            with may_fail("the progress to the screen", self._told):
                self._progress.stop()
            self._progress = None


_LINES = (
    "where bar share elapsed left phase speed rewards",
    "where share elapsed left phase speed rewards",
    "where share left phase speed rewards",
    "where share left phase rewards",
    "where share left phase reward",
    "where share left reward",
    "share left reward",
    "share reward",
    "share",
)
"""The columns of the live line, from the widest to the narrowest; the first that fits is shown. `reward` is
the last of `rewards`: the held-out one, once there is one."""


def _columns(clock: PhaseClock) -> dict[str, ProgressColumn]:
    return {
        "where": TextColumn("{task.description}", markup=False),
        "bar": BarColumn(bar_width=24),
        "share": TextColumn("{task.percentage:>3.0f} %"),
        "elapsed": TimeElapsedColumn(),
        "left": _TimeLeftColumn(),
        "phase": _PhaseColumn(clock),
        "speed": TextColumn("{task.fields[speed]}"),
        "rewards": TextColumn("{task.fields[rewards]}", markup=False),
        "reward": TextColumn("{task.fields[reward]}", markup=False),
    }


class _FittedProgress(Progress):
    """Leaves out columns that the screen is too narrow for, instead of cutting all of them off."""

    def __init__(self, columns: Mapping[str, ProgressColumn], **settings: Any) -> None:
        self._named = columns
        super().__init__(*columns.values(), **settings)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        tasks = list(tasks)
        if not tasks:  # drawn by the constructor, before there is a console
            return super().make_tasks_table(tasks)
        unlimited = self.console.options.update(max_width=10_000)
        for line in _LINES:
            self.columns = tuple(self._named[name] for name in line.split())
            table = super().make_tasks_table(tasks)
            if self.console.measure(table, options=unlimited).maximum <= self.console.width:
                break
        return table


class _TimeLeftColumn(TimeRemainingColumn):
    """The time left, with the word that tells it from the time elapsed."""

    def render(self, task: Task) -> Text:
        return Text.assemble("left ", super().render(task))


class _PhaseColumn(ProgressColumn):
    """Shows the current phase and how long it has lasted."""

    def __init__(self, clock: PhaseClock) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        phase = self._clock.phase
        if not phase:
            return Text(" " * _PHASE_WIDTH)
        spent = time.perf_counter() - self._clock.since
        said = f"{DOING.get(phase, phase)} {spent:.0f} s"
        return Text(said.ljust(_PHASE_WIDTH), style="cyan")
