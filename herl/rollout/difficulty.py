"""Which prompts of a batch are skipped because the policy has solved them, or is far from it.

A prompt's difficulty is the mean reward of the attempts at it when it was last sampled. A hash of the batch
gives a skipped prompt a chance each time it comes up, so its difficulty stays up to date. All ranks see all
groups, so they agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from herl.errors import ConfigError
from herl.seeds import derive_seed
from herl.types import Group, Task

BITS = 53
"""Bits of a hash that make a uniform number."""


def check_difficulty(above: float | None, below: float | None, chance: float) -> None:
    """Checks the settings of `RolloutPlan`.

    Raises:
        ConfigError: all prompts would be skipped once they are known, or some would never come back.
    """
    if above is not None and below is not None and below >= above:
        raise ConfigError(f"rollout.skip_below: expected less than skip_above = {above}, got {below}")
    if not 0 < chance <= 1:
        raise ConfigError(
            "rollout.skip_chance: expected a share in (0, 1], or what is skipped would never come back, "
            f"got {chance}"
        )


class Difficulty:
    """Remembers the mean rewards of prompts."""

    def __init__(self) -> None:
        self.rewards: dict[str, float] = {}
        """By task id, of the attempts when the prompt was last sampled."""

    def chosen(
        self,
        tasks: Sequence[Task],
        key: Sequence[int | str],
        *,
        above: float | None,
        below: float | None,
        chance: float,
    ) -> tuple[list[Task], Counter[str]]:
        """Returns the prompts to sample, and the counts of those skipped as "solved" and "hopeless".

        Args:
            tasks: The prompts of a batch.
            key: Identifies the batch: all randomness is a hash of it.
            above: Mean reward from which a prompt is solved; None for never.
            below: Mean reward up to which it is hopeless; None for never.
            chance: Probability, each time, with which such a prompt is sampled nevertheless.
        """
        kept: list[Task] = []
        skipped: Counter[str] = Counter()
        for task in tasks:
            reward = self.rewards.get(task.id)
            solved = reward is not None and above is not None and reward >= above
            hopeless = reward is not None and below is not None and reward <= below
            uniform = (derive_seed(*key, task.id, "difficulty") % 2**BITS) / 2**BITS
            if (solved or hopeless) and uniform >= chance:
                skipped["solved" if solved else "hopeless"] += 1
            else:
                kept.append(task)
        return kept, skipped

    def note(self, groups: Iterable[Group]) -> None:
        """Remembers the attempts of these groups. One whose attempts could not be judged says nothing."""
        for group in groups:
            if rewards := [attempt.reward for attempt in group.attempts if attempt.has_reward]:
                self.rewards[group.task.id] = fmean(rewards)

    def way_back(self) -> Callable[[], None]:
        """Returns a function that goes back to the present state, should a batch fail."""
        state = self.state_dict()
        return lambda: self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {"rewards": dict(self.rewards)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores it; empty for a checkpoint of a run that skipped nothing."""
        self.rewards = dict(state.get("rewards", {}))
