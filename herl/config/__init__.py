"""Configurations -> objects: `check.py` finds mistakes before loading, `build.py` makes objects."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """Returns the shipped configuration's folder: in the wheel, or next to the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
