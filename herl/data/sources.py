"""Prompts and rubrics as tasks: `rows` reads the files, `formats` interprets the rows."""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from herl.checks.instructions import argument_fault
from herl.data.formats import NegativeWeight, Reading, read_row, task_of
from herl.data.rows import Row, Rows, read_rows
from herl.data.view import TaskView
from herl.distributed import is_first_process
from herl.errors import ConfigError, DataError
from herl.files import write_whole
from herl.types import Task

logger = logging.getLogger(__name__)
ROW_CHARACTERS, CELL_CHARACTERS = 300, 60
"""Most characters of a bad row, and of a text in it, that an error shows."""


class ListedTasks(list[Task]):
    """Tasks in memory, with the place that they were read from."""

    path: str = ""
    unused_columns: tuple[str, ...] = ()
    """Columns of the rows that no field takes."""


class StoredTasks(TaskView):
    """Tasks read from disk on each access.

    Args:
        rows: All rows of the file.
        places: Indices of the rows to use.
        reading: How to read them.
    """

    def __init__(self, rows: Rows, places: Sequence[int], reading: Reading) -> None:
        super().__init__(places)
        self._rows = rows
        self._reading = reading

    def _task(self, place: int) -> Task:
        return task_of(self._rows[place], self._reading)


def read_tasks(
    path: str | Path | None,
    *,
    where: Mapping[str, Any] | None = None,
    fields: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    negative_weight: NegativeWeight = "must_say",
    source: str | None = None,
    part: str = "",
    on_bad_row: Literal["error", "skip"] = "error",
    quarantine: str | None = None,
) -> Sequence[Task]:
    """Reads tasks, in order. Every row is checked once; rows of large files stay on disk.

    Args:
        path: A .jsonl, .json, .csv or .parquet file, a folder of them, hf:owner/name[:split] or
            lm_eval:task.yaml[:split]; None for no tasks.
        where: Keeps only the tasks whose `meta` has these values, e.g. {"split": "train"}.
        fields: herl's field names -> names in this data (`herl.data.formats.Reading`).
        ignore: Columns to drop without a word.
        negative_weight: Meaning of a negative weight, if the row does not say.
        source: Name of the data set.
        part: Begins the ids of rows that bring none, where they must differ from those of other data sets.
        on_bad_row: `error` raises for a row that cannot be used; `skip` leaves it out and counts it.
        quarantine: File for the skipped rows and their errors; None for no file.

    Raises:
        DataError: a row cannot be used; names file, line, field, the expected and the actual value.
    """
    if path is None:
        return ListedTasks()
    if on_bad_row == "skip" and quarantine is None:
        raise ConfigError("data: on_bad_row=skip needs quarantine, a file for the skipped rows")
    rows = read_rows(path)
    reading = Reading(
        fields=dict(fields or {}), ignore=tuple(ignore), negative_weight=negative_weight, source=source,
        part=part,
    )  # fmt: skip
    tasks = ListedTasks()
    unused: set[str] = set()
    first: dict[str, int] = {}
    places = array("q")
    bad: list[str] = []
    for place in range(len(rows)):
        row = rows[place]
        try:
            task, columns = read_row(row, reading)
            check_instructions(task, row.place)
            chosen = all(task.meta.get(key) == value for key, value in (where or {}).items())
            if chosen and task.id in first:
                raise DataError(
                    f"{row.place}: id: expected a unique id, got {task.id!r}, the id of "
                    f"{rows[first[task.id]].place}"
                )
        except DataError as error:
            if on_bad_row == "error":
                raise _with_row(error, row) from error.__cause__
            value = None if isinstance(row.value, DataError) else row.value
            bad.append(json.dumps({"place": row.place, "error": str(error), "row": value}, default=str))
            continue
        unused |= columns
        if chosen:
            first[task.id] = place
            places.append(place)
            if not rows.large:
                tasks.append(task)
    if on_bad_row == "skip" and quarantine is not None and is_first_process():  # all ranks read the rows
        _put_in_quarantine(bad, Path(quarantine), f"{len(bad)} of {len(rows)} rows of {path}")
    if unused:
        logger.warning(
            "%s: these columns are not used, except by a judge=function that names them: %s",
            path,
            ", ".join(sorted(unused)),
        )
    read = StoredTasks(rows, places, reading) if rows.large else tasks
    read.path, read.unused_columns = str(path), tuple(sorted(unused))
    return read


def _put_in_quarantine(bad: Sequence[str], file: Path, counted: str) -> None:
    """Writes skipped rows and warns of them. Without any, removes those that an earlier run left."""
    if not bad:
        file.unlink(missing_ok=True)
        return
    write_whole(file, "\n".join(bad) + "\n")
    logger.warning("skipped %s; see %s. The first: %s", counted, file, json.loads(bad[0])["error"])


def _with_row(error: DataError, row: Row) -> DataError:
    """The error with the row that it is about, shortened, on a line of its own."""
    if isinstance(row.value, DataError):  # no JSON; the error quotes it
        return error
    return DataError(f"{error}\n  the row: {shortened(row.value)}")


def shortened(value: Any) -> str:
    """Returns a row as JSON, its texts and itself cut to what fits on a screen."""
    text = json.dumps(_cut(value), ensure_ascii=False, default=str)
    text = text.encode(errors="backslashreplace").decode()  # a lone surrogate cannot be printed
    return text if len(text) <= ROW_CHARACTERS else f"{text[:ROW_CHARACTERS]} ..."


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= CELL_CHARACTERS else f"{value[:CELL_CHARACTERS]}..."
    if isinstance(value, Mapping):
        return {str(name): _cut(cell) for name, cell in value.items()}
    return [_cut(cell) for cell in value] if isinstance(value, list) else value


def check_instructions(task: Task, place: str) -> None:
    """Checks the arguments of all verifiable instructions in a task.

    Raises:
        DataError: names the place, the criterion, its argument, what was expected and what was got.
    """
    for criterion in task.rubric.criteria:
        check = criterion.check or {}
        if check.get("kind") == "instruction":
            fault = argument_fault(check.get("instruction_id"), check.get("kwargs") or {})
            if fault is not None:
                raise DataError(f"{place}: criterion '{criterion.id}': {fault}")
