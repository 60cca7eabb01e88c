"""Learning-rate schedules: pure functions of training progress."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from herl.trainer_callbacks import callbacks_of

if TYPE_CHECKING:
    import lightning as L

Schedule = Literal["constant", "linear", "cosine"]


@runtime_checkable
class EndsRun(Protocol):
    """A callback that ends a run at its own limit, such as `herl.callbacks.AnswerBudget`."""

    def share_spent(self, counts: Mapping[str, int]) -> float:
        """Returns how much of the limit is spent; 1.0 or more ends the run.

        Args:
            counts: Counts of the run so far, as in `herl.module.HerlModule.counts`.
        """


def learning_rate_share(schedule: Schedule, step: int, warmup_steps: int, progress: float) -> float:
    """Returns the share of the full learning rate, in [0, 1].

    Args:
        schedule: Shape after the warm-up: constant, or falling to 0 at the end of the run.
        step: Optimizer steps taken so far.
        warmup_steps: Steps over which the rate rises linearly.
        progress: Share of the run that is done, in [0, 1].

    >>> [learning_rate_share("constant", step, warmup_steps=3, progress=0.0) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    >>> [learning_rate_share("linear", 9, warmup_steps=0, progress=done) for done in (0.0, 0.25, 1.0)]
    [1.0, 0.75, 0.0]
    >>> [round(learning_rate_share("cosine", 9, 0, done), 3) for done in (0.0, 0.25, 0.5, 1.0)]
    [1.0, 0.854, 0.5, 0.0]
    """
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    left = 1.0 - min(1.0, max(0.0, progress))
    course = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1.0 - math.cos(math.pi * left))}
    return warm * course[schedule]


def limited(limit: float | int | None, whole: int) -> int:
    """Applies one of Lightning's limits on the batches of an epoch, a number or a share of them.

    >>> limited(5, 18), limited(0.5, 18), limited(None, 18)
    (5, 9, 18)
    """
    if limit is None:
        return whole
    return min(whole, limit) if isinstance(limit, int) else int(whole * limit)


def run_share(trainer: L.Trainer, batches: int, counts: Mapping[str, int], steps: int = 0) -> float:
    """Returns the share of a run that is done, in [0, 1], by the limit that ends it first.

    Limits are max_epochs and max_steps of the trainer, and those of its callbacks (`EndsRun`).

    Args:
        trainer: The run's trainer.
        batches: Batches of the current epoch that are done.
        counts: The run's counts so far.
        steps: Optimizer steps to come that count as taken.
    """
    epochs = trainer.max_epochs or 0
    done = trainer.current_epoch + batches / trainer.num_training_batches
    by_epoch = done / epochs if epochs > 0 else 0.0
    by_step = (trainer.global_step + steps) / trainer.max_steps if trainer.max_steps > 0 else 0.0
    ending = [one for one in callbacks_of(trainer, object) if isinstance(one, EndsRun)]
    spent = [one.share_spent(counts) for one in ending]
    return min(1.0, max(by_epoch, by_step, *spent))
