"""Stage 1: rows of public formats -> `Task`; `RubricDataModule` streams them in batches of prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herl.data.datamodule import RubricDataModule

__all__ = ["RubricDataModule"]


def __getattr__(name: str) -> Any:
    """Imports the data module when it is first named: it needs Lightning, and reading rows does not."""
    if name in __all__:
        from herl.data import datamodule

        return getattr(datamodule, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
