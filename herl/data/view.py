"""Tasks that are made on each access, from rows or other tasks that may lie on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Self, overload

from herl.types import Task


class TaskView(Sequence[Task], ABC):
    """Makes tasks on access; a slice is a view too.

    Args:
        places: Indices, in the source, of the tasks to show.
        source: Gives its `path`, `unused_columns` and `weights`, if it has them.
    """

    path: str = ""
    """The file that the rows were read from."""
    unused_columns: tuple[str, ...] = ()
    """Columns of the rows that no field takes."""
    weights: Mapping[str, float] = MappingProxyType({})
    """How often each source is drawn, relative to the others, by `Task.source` (`herl.data.mix_order`).
    Empty if every task comes once an epoch."""

    def __init__(self, places: Sequence[int], source: object = None) -> None:
        self._places = array("q", places)
        self.path = getattr(source, "path", "")
        self.unused_columns = getattr(source, "unused_columns", ())
        self.weights = getattr(source, "weights", {})

    @abstractmethod
    def _task(self, place: int) -> Task:
        """Returns the task at an index in the source."""

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> Task: ...
    @overload
    def __getitem__(self, place: slice) -> Self: ...
    def __getitem__(self, place: int | slice) -> Task | Self:
        if isinstance(place, slice):
            part = copy(self)
            part._places = self._places[place]
            return part
        return self._task(self._places[place])
