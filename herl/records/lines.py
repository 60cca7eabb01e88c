"""Judged answers as lines of JSON: a run records them, `herl inspect` reads them.

pandas.read_json("runs/.../records/answers-00000.jsonl", lines=True)
datasets.load_dataset("json", data_files="runs/.../records/*.jsonl")
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from herl.errors import DataError
from herl.files import whole
from herl.prompt_text import valid
from herl.records.turns import CallRecord, TurnRecord, call_records, turn_records
from herl.types import Judged, Task

_TAIL = 1 << 16


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Verdict(_Part):
    criterion_id: str
    criterion: str
    weight: float
    fulfilled: bool | None = None
    reason: str | None = None


class _Record(_Part):
    """What is read of a record."""

    id: str
    task_id: str
    origin: str
    request: str
    text: str
    thinking: str | None = None
    turns: list[TurnRecord] | None = None
    last_calls: list[CallRecord] | None = None
    has_answer: bool = True
    policy_version: int
    reward: float | None
    verdicts: list[_Verdict]
    bonus: float | None = None
    advantage: float | None = None
    fault: str | None = None


def answer_record(task: Task, judged: Judged) -> dict[str, Any]:
    """Returns a judged answer as a JSON object, without its place in a group.

    Its texts are valid Unicode: Arrow refuses a file with half of a surrogate pair. `text` is the last turn
    of an episode. `turns` has those before it, with the environment's replies (`herl.records.turns`); an
    answer in one turn has none. `last_calls` are calls whose replies it never read, if there are any.
    """
    rollout, judgement = judged.rollout, judged.judgement
    criteria = {criterion.id: criterion for criterion in task.rubric.criteria}
    return {
        "id": rollout.id,
        "task_id": rollout.task_id,
        "parent_id": rollout.parent_id,
        "origin": rollout.origin,
        "request": valid(task.request),
        **({"turns": turn_records(rollout)} if rollout.turns else {}),
        **({"last_calls": call_records(rollout.last_calls)} if rollout.last_calls else {}),
        "text": valid(rollout.text),
        "thinking": valid(rollout.thinking),
        "has_answer": rollout.has_answer,
        "tokens": len(rollout.token_ids),
        "thinking_tokens": rollout.thinking_tokens,
        "finish_reason": rollout.finish_reason,
        "policy_version": rollout.policy_version,
        "reward": judgement.reward,
        "verdicts": [
            {
                "criterion_id": v.criterion_id,
                "criterion": valid(criteria[v.criterion_id].wish),
                "weight": criteria[v.criterion_id].weight,
                "met": v.met,
                "fulfilled": None if v.met is None else criteria[v.criterion_id].good(v.met),
                "score": v.score,
                "reason": valid(v.reason),
            }
            for v in judgement.verdicts
        ],
    }


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records to a JSONL file, which is whole or not there."""
    with whole(path) as part, part.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def record_files(folder: Path) -> list[Path]:
    """Returns the files of recorded answers in a run's folder, or in the folder that holds those files.

    Raises:
        DataError: there are no such files.
    """
    for place in (folder / "records", folder):
        if files := sorted(place.glob("answers*.jsonl")):
            return files
    raise DataError(f"{folder}: expected the folder of a run with recorded answers (records/answers-*.jsonl)")


def read_records(folder: Path, *, check: bool = False) -> Iterator[dict[str, Any]]:
    """Yields the answers that a run recorded. A partial last line, left by a killed run, is skipped.

    Args:
        folder: A run's folder, or the one that holds its records.
        check: Whether each record must have what is read of one (`checked`).

    Raises:
        DataError: the folder holds no recorded answers, a line is not JSON, or a record is not one.
    """
    for path in record_files(folder):
        for place, record in numbered_lines(path):
            yield checked(record, place) if check else record


def numbered_lines(path: Path, partial: bool = True) -> Iterator[tuple[str, Any]]:
    """Yields the content of each line of a JSONL file, with its place. Empty lines are skipped.

    Args:
        path: The file.
        partial: Whether a last line without an end is one that a killed run left, which is skipped.

    Raises:
        DataError: a line is not JSON.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if partial and not line.endswith(b"\n"):
                break
            if line.strip():
                yield f"{path}:{number}", _object(line, f"{path}:{number}")


def read_record(line: bytes, place: str) -> dict[str, Any]:
    """Returns the record in a line, whose file and number are its place.

    Raises:
        DataError: it is not JSON, or as in `checked`.
    """
    return checked(_object(line, place), place)


def checked(record: Any, place: str) -> dict[str, Any]:
    """Returns a record that was read, if it can be shown.

    Args:
        record: A line's content.
        place: The file and line, for messages.

    Raises:
        DataError: a field is missing or has another type; names the place and the field.
    """
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the line"
        raise DataError(
            f"{place}: expected an answer as a run records it; {field}: {first['msg']}"
        ) from error
    return dict(record)


def _object(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: expected one JSON object per line: {error}") from error


def whole_bytes(path: Path) -> int:
    """Returns the number of bytes up to and including a file's last newline."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _TAIL)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
