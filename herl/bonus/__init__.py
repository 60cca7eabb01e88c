"""Stage 5: pays an attempt for its potential to improve.

`BonusReward` is the interface. `ImprovementBonus` is HeRL's bonus; `NoBonus` pays nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from herl.types import Judged


class BonusReward(ABC):
    """Pays an attempt on top of its reward."""

    in_flat_groups: bool = False
    """Whether the bonus counts in a group whose members all earn the same without it. There it would be the
    only difference: divided by its own deviation, even a tiny bonus gives an advantage of full size."""

    @abstractmethod
    def bonus(self, attempt: Judged, revisions: Sequence[Judged]) -> float:
        """Returns the bonus of an attempt, in the units of the reward.

        Args:
            attempt: A judged attempt. Its reward is not None.
            revisions: The judged revisions of this attempt, at least one. Their rewards are not None.
        """


class NoBonus(BonusReward):
    """Pays nothing."""

    def bonus(self, attempt: Judged, revisions: Sequence[Judged]) -> float:
        """Returns 0."""
        return 0.0


__all__ = ["BonusReward", "NoBonus"]
