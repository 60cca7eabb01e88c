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
        splits: Tasks by split name.
        judge: The run's judge.

    Raises:
        DataError: names up to three rows with file, id and criterion, and the judges that fit them.
        ConfigError: the judge can judge no row at all.
    """
    bare = False
    rows: dict[str, str] = {}  # a row that stands in both splits counts once
    for name, tasks in splits.items():
        file = getattr(tasks, "path", "") or f"data.{name}"
        for task in _some(tasks):
            where = f"{file}, row '{task.id}'"
            if where in rows:
                continue
            rows[where] = ""
            try:
                judge.check_task(task)
            except DataError as error:
                rows[where] = str(error)
                bare |= not task.rubric.criteria
    unfit = [f"  {where}: {error}" for where, error in rows.items() if error]
    if unfit:
        more = [f"  and {len(unfit) - SHOWN} more"] if len(unfit) > SHOWN else []
        title = f"judge: {type(judge).__name__} cannot judge {len(unfit)} of {len(rows)} rows:"
        advice = f"{judge.advice}."
        if bare:
            advice = "A row without a rubric needs judge=function, with a function that returns one number."
        raise DataError("\n".join([title, *unfit[:SHOWN], *more, advice]))


def _some(tasks: Sequence[Task]) -> Iterator[Task]:
    count = min(len(tasks), MAX_ROWS)
    return (tasks[place * len(tasks) // count] for place in range(count))
