"""Spends revisions where they are worth most: early in the run, on groups that do badly, or on flat groups.

The rewards of a group whose attempts all earn the same teach nothing; a revision that joins gives it a
signal. SAGE (arXiv:2602.03143), LTE (arXiv:2510.26109) and HINT (arXiv:2510.09388) spend hints on such
groups only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from math import inf
from statistics import median
from typing import Any

from herl.errors import ConfigError, check_at_least
from herl.hindsight import HindsightBuilder
from herl.types import Hindsight, Judged, Message, Task


class GatedHindsight(HindsightBuilder):
    """Lets another builder write revision prompts for some groups only, which saves answers.

    The gate closes only in training batches. Validations revise everything that the other builder does.

    Args:
        builder: Writes the revision prompts.
        until: Share of the run after which hindsight ends, in (0, 1].
        below_median: Whether to revise only groups whose best attempt scores below the median of the best
            attempts in the last `window` groups.
        window: Number of groups for that median.
        only_flat: Whether to revise only groups whose attempts earn the same, up to `tolerance`.
        tolerance: Spread of rewards (largest minus smallest) below which a group is flat; as that of the
            advantages.
    """

    def __init__(
        self,
        builder: HindsightBuilder,
        until: float = 1.0,
        below_median: bool = False,
        window: int = 256,
        only_flat: bool = False,
        tolerance: float = 1e-4,
    ) -> None:
        if not 0.0 < until <= 1.0:
            raise ConfigError(f"module.hindsight_gate.until: expected a share in (0, 1], got {until}")
        check_at_least("module.hindsight_gate", 1, window=window)
        check_at_least("module.hindsight_gate", 0, tolerance=tolerance)
        if builder.tells and (below_median or only_flat):
            raise ConfigError(
                f"module.hindsight_gate.{'only_flat' if only_flat else 'below_median'}: expected false with "
                "hindsight=told, whose answers are sampled together with the attempts, before their rewards "
                "are known: only module.hindsight_gate.until can limit them"
            )
        self.builder = builder
        self.revises = builder.revises
        self.needs_verdicts = builder.needs_verdicts
        self.tells = builder.tells
        self.until = until
        self.below_median = below_median
        self.only_flat = only_flat
        self.tolerance = tolerance
        self.best: deque[float] = deque(maxlen=window)
        """Rewards of the best attempts in the last `window` groups."""
        self.level = inf
        """In the current batch, groups whose best attempt earns at least this reward are not revised."""
        self.in_batch = False

    def begin_batch(self, progress: float) -> None:
        """Sets the level of the batch."""
        self.builder.begin_batch(progress)
        self.in_batch = True
        if progress >= self.until:
            self.level = -inf
        elif self.below_median and self.best:
            self.level = median(self.best)

    def build(self, task: Task, group: Sequence[Judged]) -> list[Hindsight]:
        """Returns the other builder's result, or an empty list if the gate is closed."""
        rewards = _rewards(group)
        if self.level < inf and max(rewards, default=0.0) >= self.level:
            return []
        if self.only_flat and self.in_batch and rewards and max(rewards) - min(rewards) >= self.tolerance:
            return []
        return self.builder.build(task, group)

    def tell(self, task: Task) -> tuple[Message, ...] | None:
        """Returns the other builder's result, or None if the gate is closed."""
        return None if self.level == -inf else self.builder.tell(task)

    def end_batch(self, groups: Sequence[Sequence[Judged]]) -> None:
        """Remembers the best attempt of each group, and opens the gate."""
        self.builder.end_batch(groups)
        self.level, self.in_batch = inf, False
        self.best.extend(max(found) for found in map(_rewards, groups) if found)

    def state_dict(self) -> dict[str, Any]:
        """Returns the rewards of the last groups' best attempts, and the other builder's state."""
        return {"best": list(self.best), "builder": self.builder.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores them."""
        self.best.clear()
        self.best.extend(state.get("best", ()))
        self.builder.load_state_dict(state.get("builder", {}))


def gated(
    builder: HindsightBuilder,
    until: float = 1.0,
    below_median: bool = False,
    window: int = 256,
    only_flat: bool = False,
    tolerance: float = 1e-4,
) -> HindsightBuilder:
    """Returns the builder behind a gate; a builder that never revises needs none.

    A gate that never closes still learns the level, so that a resumed run may begin to use it.

    Args:
        builder: Writes the revision prompts.
        until: See `GatedHindsight`.
        below_median: See `GatedHindsight`.
        window: See `GatedHindsight`.
        only_flat: See `GatedHindsight`.
        tolerance: See `GatedHindsight`.
    """
    gate = GatedHindsight(builder, until, below_median, window, only_flat, tolerance)
    return gate if builder.revises else builder


def _rewards(group: Sequence[Judged]) -> list[float]:
    return [answer.reward for answer in group if answer.has_reward]
