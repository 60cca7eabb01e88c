"""Files of prompts and rubrics -> tasks. The format of a row is recognised by its fields.

| format | fields                                                                                     |
|--------|--------------------------------------------------------------------------------------------|
| native | id, messages or prompt, rubric: [{text, weight, check, ...}], reference, meta              |
| IFEval | key, prompt, instruction_id_list, kwargs (also IFBench): one criterion per instruction     |

A native rubric may also be a list of plain strings, each with weight 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from herl.errors import DataError
from herl.types import Criterion, Rubric, Task


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Message(_Row):
    role: str
    content: str


class _Criterion(_Row):
    text: str = Field(min_length=1)
    id: str = ""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    title: str = ""
    category: str = ""
    check: dict[str, Any] | None = None
    undesirable: bool | None = None
    gate: bool = False

    @model_validator(mode="after")
    def _says_what_a_negative_weight_means(self) -> _Criterion:
        if self.weight < 0 and self.undesirable is None:
            raise ValueError(
                "a negative weight needs 'undesirable': true if meeting it is bad (\"advertises\"), "
                'false if meeting it is good ("does not advertise")'
            )
        return self


class _Native(_Row):
    id: str | int | None = None
    messages: list[_Message] | None = Field(default=None, min_length=1)
    prompt: str | None = None
    rubric: list[_Criterion | str] = Field(min_length=1)
    reference: str | None = None
    source: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)


class _IFEval(BaseModel):
    key: str | int
    prompt: str
    instruction_id_list: list[str] = Field(min_length=1)
    kwargs: list[dict[str, Any] | None]


def read_tasks(path: str | Path, *, where: Mapping[str, Any] | None = None) -> list[Task]:
    """Reads the tasks of a .jsonl or .parquet file, in order.

    Args:
        path: The file.
        where: Keeps only the tasks whose `meta` has these values, e.g. {"split": "train"}.

    Raises:
        DataError: a row cannot be used; names file, line, field, what was expected and what was got.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a file of prompts, got none")
    tasks = [_task(row, f"{path}:{line}", line) for line, row in _rows(path)]
    kept = where or {}
    return [t for t in tasks if all(t.meta.get(key) == value for key, value in kept.items())]


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields (line or row number from 1, row)."""
    if path.suffix == ".parquet":
        import pyarrow.parquet  # heavy, and most runs read JSONL

        yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, _parse(text, f"{path}:{line}")
    else:
        raise DataError(f"{path}: expected a .jsonl or .parquet file, got '{path.suffix}'")


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: expected one JSON object per line, got {text.strip()[:60]!r} ({error})"
        ) from error


def _task(row: Any, place: str, line: int) -> Task:
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected a JSON object, got {type(row).__name__}")
    try:
        if "instruction_id_list" in row:
            return _ifeval_task(_IFEval.model_validate(row), place)
        return _native_task(_Native.model_validate(row), place, line)
    except ValidationError as error:
        raise DataError(f"{place}: {_explain(error)}") from error


def _native_task(row: _Native, place: str, line: int) -> Task:
    if (row.messages is None) == (row.prompt is None):
        raise DataError(f"{place}: expected either 'messages' or 'prompt', got both or neither")
    messages = row.messages or [_Message(role="user", content=row.prompt or "")]
    if messages[-1].role != "user":
        raise DataError(f"{place}: messages: expected the last role to be 'user', got '{messages[-1].role}'")
    parsed = [_Criterion(text=c) if isinstance(c, str) else c for c in row.rubric]
    criteria = tuple(
        Criterion(
            **criterion.model_dump(exclude={"id", "undesirable"}),
            id=criterion.id or f"c{number}",
            undesirable=bool(criterion.undesirable),
        )
        for number, criterion in enumerate(parsed, start=1)
    )
    if not any(criterion.weight > 0 for criterion in criteria):
        raise DataError(f"{place}: rubric: expected at least one positive weight, got none")
    ids = [criterion.id for criterion in criteria]
    if len(set(ids)) < len(ids):
        raise DataError(f"{place}: rubric: expected ids to be unique, got {ids}")
    return Task(
        id=str(line if row.id is None else row.id),
        messages=tuple(message.model_dump() for message in messages),
        rubric=Rubric(criteria=criteria),
        reference=row.reference,
        source=row.source,
        meta=row.meta,
    )


def _ifeval_task(row: _IFEval, place: str) -> Task:
    if len(row.kwargs) != len(row.instruction_id_list):
        raise DataError(
            f"{place}: kwargs: expected {len(row.instruction_id_list)} entries, one per instruction, "
            f"got {len(row.kwargs)}"
        )
    criteria: list[Criterion] = []
    for instruction, kwargs in zip(row.instruction_id_list, row.kwargs, strict=True):
        times = row.instruction_id_list[: len(criteria)].count(instruction)
        suffix = f"#{times + 1}" if times else ""
        criteria.append(instruction_criterion(instruction, kwargs or {}, suffix=suffix))
    return Task(
        id=str(row.key),
        messages=({"role": "user", "content": row.prompt},),
        rubric=Rubric(criteria=tuple(criteria)),
        source="ifeval",
    )


def instruction_criterion(
    instruction: str, kwargs: Mapping[str, Any], text: str = "", suffix: str = ""
) -> Criterion:
    """Returns the criterion of a verifiable instruction, e.g. "punctuation:no_comma".

    Without a text the criterion says the instruction's name and arguments. The suffix tells apart the ids
    of two instructions of one kind.
    """
    given = {key: value for key, value in kwargs.items() if value is not None}
    told = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in given.items())
    name = instruction.replace(":", ": ").replace("_", " ")
    return Criterion(
        id=instruction + suffix,
        text=text or (f"{name} ({told})" if told else name),
        category=instruction.split(":")[0],
        check={"kind": "instruction", "instruction_id": instruction, "kwargs": given},
    )


def _explain(error: ValidationError) -> str:
    """The first complaint of pydantic, as field, expected, got."""
    first = error.errors()[0]
    # pydantic also names the branches of a union, such as "_Criterion" or "function-after[...]"
    steps = [str(part) for part in first["loc"]]
    field = ".".join(step for step in steps if not step.startswith(("_", "function-")))
    got = "nothing" if first["type"] == "missing" else repr(first["input"])[:80]
    return f"{field}: {first['msg']}, got {got}"
