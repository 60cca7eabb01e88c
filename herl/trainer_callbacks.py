"""Finds callbacks of a Lightning trainer, which declares no type for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    import lightning as L

Kind = TypeVar("Kind")


def callbacks_of(trainer: L.Trainer, kind: type[Kind]) -> list[Kind]:
    """Returns a trainer's callbacks of a class, in order."""
    every = cast("list[L.Callback]", trainer.callbacks)  # type: ignore[attr-defined]
    return [one for one in every if isinstance(one, kind)]
