"""HeRL's bonus: a share of the best revision's gain over its draft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from herl.bonus import BonusReward
from herl.errors import ConfigError
from herl.types import Judged


class ImprovementBonus(BonusReward):
    """Pays alpha * (best revision's reward - attempt's reward), arXiv:2603.20046.

    Args:
        alpha: Share of the gain that is paid.
        mode: "signed" lowers the reward if the revision is worse (as in the reference code); "clipped" does
            not.
        in_flat_groups: See `BonusReward.in_flat_groups`; True in the reference code.
    """

    def __init__(
        self,
        alpha: float = 0.05,
        mode: Literal["signed", "clipped"] = "signed",
        in_flat_groups: bool = False,
    ) -> None:
        if alpha < 0:
            raise ConfigError(f"bonus.alpha: expected a number >= 0, got {alpha}")
        self.alpha = alpha
        self.mode = mode
        self.in_flat_groups = in_flat_groups

    def bonus(self, attempt: Judged, revisions: Sequence[Judged]) -> float:
        """Returns the attempt's bonus, in [-alpha, alpha] for rewards in [0, 1].

        >>> from herl.testing import make_judged
        >>> attempt, revision = make_judged(0.5), make_judged(0.9, id="r", parent_id="group/0")
        >>> round(ImprovementBonus(alpha=0.05).bonus(attempt, [revision]), 4)
        0.02
        >>> round(ImprovementBonus(alpha=0.05).bonus(revision, [attempt]), 4)
        -0.02
        >>> ImprovementBonus(alpha=0.05, mode="clipped").bonus(revision, [attempt])
        0.0
        """
        best = max(revision.judgement.reward or 0.0 for revision in revisions)
        gain = best - (attempt.judgement.reward or 0.0)
        return self.alpha * (max(0.0, gain) if self.mode == "clipped" else gain)
