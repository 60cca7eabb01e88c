"""Spends revisions where they are worth most: in a part of the run, or on groups that do badly."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from statistics import median
from typing import Any

import lightning as L

from herl.errors import ConfigError, check_at_least
from herl.hindsight import HindsightBuilder
from herl.metrics.rubric import rewards
from herl.module import HerlModule
from herl.rollout.stages import Stages
from herl.types import Hindsight, Judged, Task


class BelowLevel(HindsightBuilder):
    """Lets another builder write revision prompts for groups whose best attempt is below a level.

    Args:
        builder: Writes them.
        level: Reward from which on a group's best attempt is left alone.
    """

    def __init__(self, builder: HindsightBuilder, level: float) -> None:
        self.builder = builder
        self.level = level
        self.needs_verdicts = builder.needs_verdicts

    def build(self, task: Task, group: Sequence[Judged]) -> list[Hindsight]:
        """Returns what the other builder does, or an empty list."""
        return self.builder.build(task, group) if max(rewards(group), default=0.0) < self.level else []


class HindsightGate(L.Callback):
    """Closes hindsight to some groups, or for the rest of the run. What is not revised costs no answers.

    Args:
        until: Share of the run in which there is hindsight, in (0, 1].
        below_median: Revise only groups whose best attempt is below the median of the best attempts of the
            last `window` groups.
        window: Groups.
    """

    def __init__(self, until: float = 1.0, below_median: bool = False, window: int = 256) -> None:
        if not 0.0 < until <= 1.0:
            raise ConfigError(f"callbacks.hindsight_gate.until: expected a share in (0, 1], got {until}")
        check_at_least("callbacks.hindsight_gate", 1, window=window)
        self.until = until
        self.below_median = below_median
        self.best: deque[float] = deque(maxlen=window)
        self._ungated: Stages | None = None

    def state_dict(self) -> dict[str, list[float]]:
        """Returns the best attempts of the last groups."""
        return {"best": list(self.best)}

    def load_state_dict(self, state_dict: dict[str, list[float]]) -> None:
        """Takes them back."""
        self.best.extend(state_dict["best"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Puts the hindsight of this batch in place."""
        assert isinstance(pl_module, HerlModule)
        self._ungated = pl_module.stages
        level = inf
        if pl_module.share_done(batch_idx) >= self.until:
            level = -inf
        elif self.below_median and self.best:
            level = median(self.best)
        if level < inf:
            gated = BelowLevel(self._ungated.hindsight, level)
            pl_module.stages = replace(self._ungated, hindsight=gated)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, HerlModule)
        assert pl_module.collection is not None
        assert self._ungated is not None
        pl_module.stages = self._ungated
        attempts = [rewards(group.attempts) for group in pl_module.collection.groups]
        self.best.extend(max(found) for found in attempts if found)
