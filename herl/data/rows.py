"""Files and data sets -> rows, each with its place for error messages. Large files stay on disk.

| path                     | rows                                                                           |
|--------------------------|--------------------------------------------------------------------------------|
| x.jsonl                  | one JSON object per line                                                       |
| x.json                   | a list of objects                                                              |
| x.csv                    | one per line, after a header with the column names                             |
| x.parquet                | one per table row                                                              |
| a folder                 | all such files in it, by name; or a data set that `datasets` saved there       |
| hf:owner/name[:split]    | a data set on the Hugging Face hub; the default split is train                 |
| lm_eval:x.yaml[:split]   | a task of lm-evaluation-harness (`herl.data.lm_eval`)                          |

A file that stays on disk must not change while rows are read from it: a change is an error at the next row.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from herl.errors import ConfigError, DataError

logger = logging.getLogger(__name__)
LARGE_BYTES = 128 * 2**20
"""Files above this size are read row by row, on demand."""
HUB = "hf:"
LM_EVAL = "lm_eval:"
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as read."""

    place: str
    """Location for error messages: "prompts.jsonl:12"."""
    number: int
    """Counted from 1 within its file; the line number for JSONL and CSV."""
    value: Any
    part: str = ""
    """Name of its file in a folder of several; "" for a single file."""
    filled: bool = False
    """Whether the source fills fields that a row lacks with nulls, as Arrow does."""

    @property
    def id(self) -> str:
        """The id of a row that brings none: unique in its data set, and the same at every reading."""
        return f"{self.part}:{self.number}" if self.part else str(self.number)


class Rows(Sequence[Row], ABC):
    """Rows by index, from 0."""

    large: bool = False
    """Whether rows are read from disk on demand."""

    @abstractmethod
    def read(self, place: int) -> Row:
        """Returns one row."""

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | Sequence[Row]:
        if isinstance(place, slice):
            return [self.read(i) for i in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.read(place)


class ListedRows(Rows):
    """Rows held in memory."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, place: int) -> Row:
        return self._rows[place]


class Unchanged:
    """Files that are read on demand, and must stay as they were when their rows were checked.

    Args:
        paths: The files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._seen = {path: _stamp(path.stat()) for path in paths}

    def check(self) -> None:
        """Compares each file's place on the disk, size and time with those at the beginning.

        Raises:
            DataError: one differs, or cannot be read; names the file.
        """
        for path, before in self._seen.items():
            try:
                same = _stamp(path.stat()) == before
            except OSError as error:
                raise DataError(f"{path}: expected the file that the run began with, got {error}") from error
            if not same:
                raise DataError(
                    f"{path}: expected the file that the run began with, but it has changed on the disk. Put "
                    "the old one back to go on, or start a new run. Files of this size are read during a run"
                )


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class JsonLines(Rows):
    """Lines of a file. Only their offsets are kept in memory."""

    large = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unchanged = Unchanged([path])
        self._offsets, self._lines = array("q"), array("q")
        with path.open("rb") as file:
            offset = 0
            for number, text in enumerate(file, start=1):
                if text.strip():
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(text)

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, place: int) -> Row:
        self._unchanged.check()
        try:
            with self._path.open("rb") as file:
                file.seek(self._offsets[place])
                line = file.readline()
        except OSError as error:
            raise DataError(f"{self._path}:{self._lines[place]}: cannot be read: {error}") from error
        self._unchanged.check()  # it may have changed meanwhile
        return _json_row(line, self._path, self._lines[place])


class Table(Rows):
    """Rows of a data set that `datasets` memory-maps.

    Args:
        name: Its name, for error messages.
        table: The data set.
        sources: The files that it was made from.
    """

    large = True

    def __init__(self, name: str, table: Any, sources: Sequence[Path] = ()) -> None:
        self._name = name
        self._table = table
        mapped = [Path(one["filename"]) for one in getattr(table, "cache_files", ())]
        self._unchanged = Unchanged([*sources, *mapped])

    def __len__(self) -> int:
        return len(self._table)

    def read(self, place: int) -> Row:
        self._unchanged.check()  # beforehand: a mapped page of a file that has shrunk ends the process
        return Row(place=f"{self._name}:{place + 1}", number=place + 1, value=self._table[place], filled=True)


def read_rows(path: str | Path) -> Rows:
    """Returns the rows of a file, a folder or a data set, in order.

    Raises:
        DataError: the path does not exist, or is of another kind than those above.
        ConfigError: the path needs the package `datasets`, which is not installed.
    """
    if str(path).startswith(HUB):
        name, _, split = str(path).removeprefix(HUB).partition(":")
        return Table(str(path), load_dataset(name, split=split or "train"))
    if str(path).startswith(LM_EVAL):
        from herl.data.lm_eval import task_rows  # it reads its files here

        return task_rows(str(path))
    path = Path(path).expanduser()
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a file of prompts, but there is no such file")
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: expected a {', '.join(readers)} file or a folder, got '{path.suffix}'")
    return readers[path.suffix.lower()](path)


def _folder(path: Path) -> Rows:
    if (path / "state.json").is_file():
        return Table(str(path), _datasets().load_from_disk(str(path)))
    if (splits := path / "dataset_dict.json").is_file():
        names = [name for name in json.loads(splits.read_bytes())["splits"] if (path / name).is_dir()]
        raise DataError(
            f"{path}: expected rows, got several splits: name one of them, as in "
            f"{path / (names[0] if names else 'train')} (there are {', '.join(names) or 'none'})"
        )
    found = [p for p in path.iterdir() if p.is_file() and not p.name.startswith((".", "bad_rows_"))]
    files = sorted(p for p in found if p.suffix.lower() in (".jsonl", ".json", ".csv", ".parquet"))
    if len(files) < len(found):
        others = sorted(p.name for p in set(found) - set(files))
        logger.warning(
            "%s: %d files are not rows and are not read: %s", path, len(others), ", ".join(others[:5])
        )
    if not files:
        raise DataError(f"{path}: expected .jsonl, .json, .csv or .parquet files in the folder, got none")
    parts = [read_rows(file) for file in files]
    return parts[0] if len(parts) == 1 else Chain(parts, [file.name for file in files])


class Chain(Rows):
    """The rows of several files, one after another."""

    def __init__(self, parts: Sequence[Rows], names: Sequence[str]) -> None:
        self._parts = parts
        self._names = names
        self._starts = [sum(len(part) for part in parts[:i]) for i in range(len(parts))]
        self.large = any(part.large for part in parts)

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def read(self, place: int) -> Row:
        for start, part, name in zip(self._starts, self._parts, self._names, strict=True):
            if start <= place < start + len(part):
                return replace(part[place - start], part=name)
        raise IndexError(place)


def _jsonl(path: Path) -> Rows:
    if path.stat().st_size > LARGE_BYTES:
        return JsonLines(path)
    with path.open("rb") as file:
        return ListedRows(
            [_json_row(text, path, number) for number, text in enumerate(file, start=1) if text.strip()]
        )


def _json_row(text: bytes, path: Path, number: int) -> Row:
    """Parses a line. Invalid JSON becomes a row whose value is a `DataError`, so that it can be skipped."""
    place = f"{path}:{number}"
    try:
        return Row(place=place, number=number, value=json.loads(text, object_pairs_hook=_unique))
    except (ValueError, RecursionError) as error:  # also a number with too many digits
        shown = text.decode(errors="replace").strip()[:60]
        problem = DataError(f"{place}: expected one JSON object per line, got {shown!r} ({error})")
        return Row(place=place, number=number, value=problem)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _json(path: Path) -> Rows:
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # also a number with too many digits
        raise DataError(f"{path}: expected JSON, got something else ({error})") from error
    if not isinstance(found, list):
        raise DataError(f"{path}: expected a list of rows, got {type(found).__name__}")
    return _numbered(path, found)


def _csv(path: Path) -> Rows:
    def rows() -> Iterator[Row]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            if twice := [name for name, times in Counter(names).items() if times > 1]:
                raise DataError(f"{path}:1: expected different column names, got {twice[0]!r} more than once")
            for value in reader:
                place = f"{path}:{reader.line_num}"
                yield Row(place=place, number=reader.line_num, value=_cells(value, place))

    try:
        return ListedRows(list(rows()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected CSV in UTF-8, got something else ({error})") from error


def _cells(row: dict[Any, Any], place: str) -> dict[str, Any] | DataError:
    """Drops empty cells."""
    if None in row:  # csv's name for the cells behind the last column
        got = f"{len(row[None])} more: {row[None][0][:60]!r}"
        return DataError(
            f'{place}: expected a cell for each column, got {got}. Put "..." around texts with commas'
        )
    return {name: value for name, value in row.items() if value not in ("", None)}


def _parquet(path: Path) -> Rows:
    if path.stat().st_size > LARGE_BYTES:
        table = _datasets().load_dataset("parquet", data_files=str(path), split="train")
        return Table(str(path), table, sources=[path])
    import pyarrow.parquet  # heavy, and most runs read JSONL

    try:
        return _numbered(
            path, pyarrow.parquet.read_table(path).to_pylist(maps_as_pydicts="strict"), filled=True
        )
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected Parquet, got something else ({error})") from error


def _numbered(path: Path, values: Sequence[Any], filled: bool = False) -> Rows:
    return ListedRows(
        [
            Row(place=f"{path}:{number}", number=number, value=value, filled=filled)
            for number, value in enumerate(values, start=1)
        ]
    )


def load_dataset(path: str, *arguments: Any, **options: Any) -> Any:
    """Returns a data set of the Hugging Face hub, by the function of that name in `datasets`.

    Raises:
        ConfigError: the package is not installed.
    """
    return _datasets().load_dataset(path, *arguments, **options)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "data: large Parquet files and hub data sets need the extra 'datasets' "
            f"(pip install datasets): {error}"
        ) from error
    return datasets
