"""The names of the curves of gold judges, for settings that name one. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable

OF_JUDGE = ("reward", "gap", "criteria_met", "perfect", "abstained", "length_correlation")
"""Curves `gold/<name>/...` that any gold judge may have."""
GAMING = ("gap", "opened", "opened_error", "length_correlation")
"""Curves `gaming/...`."""


def gold_curves(judges: Iterable[str]) -> list[str]:
    """Returns the curves that a run with these gold judges may have, without those by criterion."""
    found = [f"gold/{judge}/{curve}" for judge in judges for curve in OF_JUDGE]
    return found + [f"gaming/{curve}" for curve in GAMING] if found else []
