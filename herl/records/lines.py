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

from herl.errors import DataError
from herl.types import Judged, Task

_TAIL = 1 << 16


def answer_record(task: Task, judged: Judged) -> dict[str, Any]:
    """Returns a judged answer as a JSON object, without its place in a group."""
    rollout, judgement = judged.rollout, judged.judgement
    criteria = {criterion.id: criterion for criterion in task.rubric.criteria}
    return {
        "id": rollout.id,
        "task_id": rollout.task_id,
        "parent_id": rollout.parent_id,
        "origin": rollout.origin,
        "request": task.request,
        "text": rollout.text,
        "thinking": rollout.thinking,
        "has_answer": rollout.has_answer,
        "tokens": len(rollout.token_ids),
        "thinking_tokens": rollout.thinking_tokens,
        "finish_reason": rollout.finish_reason,
        "policy_version": rollout.policy_version,
        "reward": judgement.reward,
        "verdicts": [
            {
                "criterion_id": v.criterion_id,
                "criterion": criteria[v.criterion_id].wish,
                "weight": criteria[v.criterion_id].weight,
                "met": v.met,
                "fulfilled": None if v.met is None else criteria[v.criterion_id].good(v.met),
                "score": v.score,
                "reason": v.reason,
            }
            for v in judgement.verdicts
        ],
    }


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records to a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
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


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the answers that a run recorded. A partial last line, left by a killed run, is skipped.

    Raises:
        DataError: the folder holds no recorded answers, or a line is not JSON.
    """
    for path in record_files(folder):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}:{number}: expected one JSON object per line: {error}") from error


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
