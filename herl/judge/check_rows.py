"""Checks that the rows of a run fit its judge, before a model loads and anything is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from herl.errors import DataError
from herl.judge.base import Judge
from herl.types import Task

MAX_ROWS = 10_000
"""Rows of a split that are looked at, evenly spaced."""
SHOWN = 3
"""Rows that an error names."""


def check_rows(splits: Mapping[str, Sequence[Task]], judge: Judge) -> None:
    """Checks that the judge can judge the answers to every row.

    Args:
        splits: Tasks by split name. The same tasks under two names are checked once.
        judge: The run's judge.

    Raises:
        DataError: names up to three rows with file, id and criterion, and the judges that fit them.
        ConfigError: the judge can judge no row at all.
    """
    shown: list[str] = []
    rows = unfit = 0
    for name, tasks in {id(tasks): (split, tasks) for split, tasks in splits.items()}.values():
        where = getattr(tasks, "path", "") or f"data.{name}"
        for task in _some(tasks):
            rows += 1
            try:
                judge.check_task(task)
            except DataError as error:
                unfit += 1
                if unfit <= SHOWN:
                    shown.append(f"  {where}, row '{task.id}': {error}")
    if unfit:
        more = [f"  and {unfit - SHOWN} more"] if unfit > SHOWN else []
        title = f"judge: expected rows that {type(judge).__name__} can judge, got {unfit} of {rows} others:"
        raise DataError("\n".join([title, *shown, *more, f"{judge.advice}."]))


def _some(tasks: Sequence[Task]) -> Iterator[Task]:
    count = min(len(tasks), MAX_ROWS)
    return (tasks[place * len(tasks) // count] for place in range(count))
