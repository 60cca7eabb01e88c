"""Stage 5: what an attempt is paid for its potential to improve.

`BonusReward` is the interface. `ImprovementBonus` is the method's own; `NoBonus` pays nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from herl.types import Judged


class BonusReward(ABC):
    """Pays an attempt on top of its reward."""

    @abstractmethod
    def bonus(self, attempt: Judged, revisions: Sequence[Judged]) -> float:
        """Returns the bonus of an attempt, in the units of the reward.

        Args:
            attempt: A judged attempt; its reward is never None here.
            revisions: Its own judged revisions, at least one; rewards are never None here.
        """


class NoBonus(BonusReward):
    """Pays nothing."""

    def bonus(self, attempt: Judged, revisions: Sequence[Judged]) -> float:
        """Returns 0."""
        return 0.0


__all__ = ["BonusReward", "NoBonus"]
