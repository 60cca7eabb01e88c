"""The names of the curves of gold judges, for settings that name one. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable

BEST_WHEN_HIGHEST = ("reward", "criteria_met", "perfect", "visible_met", "hidden_met")
"""Curves `gold/<name>/...` whose highest value can mark the best checkpoint."""
OF_JUDGE = (*BEST_WHEN_HIGHEST, "gap", "abstained", "length_correlation")
"""Curves `gold/<name>/...` that a gold judge may have, without those of its cost."""
GAMING = ("gap", "opened", "opened_error", "length_correlation")
"""Curves `gaming/...`."""


def best_when_highest(judges: Iterable[str]) -> list[str]:
    """Returns the curves of these gold judges that the best checkpoint may depend on."""
    return [f"gold/{judge}/{curve}" for judge in judges for curve in BEST_WHEN_HIGHEST]


def gold_curves(judges: Iterable[str]) -> list[str]:
    """Returns the curves that a run with these gold judges may have, without those by criterion."""
    found = [f"gold/{judge}/{curve}" for judge in judges for curve in OF_JUDGE]
    return found + [f"gaming/{curve}" for curve in GAMING] if found else []
