"""Rows of HealthBench (arXiv:2505.08775), read strictly: a benchmark's rows are never guessed at.

A line of the public file is an object with `prompt_id`, `prompt` (messages), `rubrics` ({criterion, points,
tags}) and `example_tags`; other fields are not used. The files for all prompts, the hard ones and those of
the consensus have the same form. `herl.data.formats` reads such rows too, for training.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from herl.checks.reading import shown
from herl.data.cells import check_unicode
from herl.data.prompts import answered_only
from herl.data.rows import Row, read_rows
from herl.errors import ConfigError, DataError
from herl.types import Criterion, Rubric, Task

if TYPE_CHECKING:
    from herl.data.datamodule import RubricDataModule

NEEDED = {
    "prompt_id": "a text",
    "prompt": "a list of messages with role and content",
    "role": "user, assistant or system",
    "content": "a text",
    "rubrics": "a list of objects with criterion, points and tags",
    "criterion": "a text that is not empty",
    "points": "a number",
    "tags": "a list of texts",
    "example_tags": "a list of texts",
}
"""The keys of a row, and what each must be."""
ENTRIES = {
    "prompt": "a message with role and content",
    "rubrics": "an object with criterion, points and tags",
}
"""What the entries of its lists are; those of others are texts."""


class _Message(BaseModel):
    model_config = ConfigDict(strict=True)
    role: str = Field(pattern="^(user|assistant|system)$")
    content: str


class _Item(BaseModel):
    model_config = ConfigDict(strict=True)
    criterion: str = Field(min_length=1)
    points: float = Field(allow_inf_nan=False)
    tags: list[str]


class _Line(BaseModel):
    model_config = ConfigDict(strict=True)
    prompt_id: str
    prompt: list[_Message] = Field(min_length=1)
    rubrics: list[_Item] = Field(min_length=1)
    example_tags: list[str]


def healthbench(
    path: str, max_prompts: int | None = None, prompts_per_batch: int = 16, seed: int = 0
) -> RubricDataModule:
    """Returns the prompts of a HealthBench file as held-out prompts.

    Args:
        path: The public file, or one of the same form.
        max_prompts: Number of prompts; None for all. They are those that simple-evals draws for
            --examples, and in its order: `random.Random(0).sample`.
        prompts_per_batch: Prompts answered together.
        seed: Seed of the data module.

    Raises:
        DataError: a row cannot be used; names file, line, key, the expected and the actual value.
        ConfigError: there is no such file, or `max_prompts` is below 1.
    """
    if max_prompts is not None and max_prompts < 1:
        raise ConfigError(f"benchmark.data.max_prompts: expected at least 1, or null, got {max_prompts}")
    tasks: dict[str, Task] = {}
    places: dict[str, str] = {}
    for row in read_rows(path):
        task = healthbench_task(row)
        if task.id in tasks:
            raise DataError(
                f"{row.place}: prompt_id: expected a unique text, got {task.id!r}, as in {places[task.id]}"
            )
        tasks[task.id], places[task.id] = task, row.place
    chosen = list(tasks.values())
    if max_prompts is not None and max_prompts < len(chosen):
        chosen = random.Random(0).sample(chosen, max_prompts)
    return answered_only(chosen, prompts_per_batch, seed)


def healthbench_task(row: Row) -> Task:
    """Returns the task of a row. Its `meta` has `example_tags`, and `rubric_tags` by criterion id.

    Negative points make a criterion undesirable; its first tag that begins with "axis:" is its category.

    Raises:
        DataError: the row cannot be used; names its place, the key, the expected and the actual value.
    """
    if isinstance(row.value, DataError):
        raise row.value
    try:
        if isinstance(row.value, dict):
            check_unicode({name: row.value[name] for name in _Line.model_fields if name in row.value})
        line = _Line.model_validate(row.value)
    except ValidationError as error:
        raise DataError(f"{row.place}: {_fault(error)}") from error
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from error
    if line.prompt[-1].role != "user":
        raise DataError(
            f"{row.place}: prompt.{len(line.prompt) - 1}.role: expected the last message to be the user's, "
            f"got {line.prompt[-1].role!r}"
        )
    if not any(item.points > 0 for item in line.rubrics):
        raise DataError(f"{row.place}: rubrics: expected positive points at least once, got none")
    _check_once(f"{row.place}: example_tags", line.example_tags)
    for number, item in enumerate(line.rubrics):
        _check_once(f"{row.place}: rubrics.{number}.tags", item.tags)
    criteria = tuple(
        Criterion(
            id=f"c{number}",
            text=item.criterion,
            weight=item.points,
            category=next((tag for tag in item.tags if tag.startswith("axis:")), ""),
            undesirable=item.points < 0,
            named=False,
        )
        for number, item in enumerate(line.rubrics, start=1)
    )
    return Task(
        id=line.prompt_id,
        messages=tuple(message.model_dump() for message in line.prompt),
        rubric=Rubric(criteria=criteria),
        source="healthbench",
        meta={
            "example_tags": line.example_tags,
            "rubric_tags": {c.id: item.tags for c, item in zip(criteria, line.rubrics, strict=True)},
        },
    )


def _check_once(name: str, tags: list[str]) -> None:
    twice = [tag for tag, times in Counter(tags).items() if times > 1]
    if twice:
        raise DataError(f"{name}: expected each tag once, got {twice[0]!r} more than once")


def _fault(error: ValidationError) -> str:
    """Pydantic's first complaint: the key, what was expected of it, and what was got."""
    first: Mapping[str, Any] = error.errors()[0]
    steps = list(first["loc"])
    key = next((step for step in reversed(steps) if isinstance(step, str)), "")
    got = "nothing" if first["type"] == "missing" else shown(first["input"])
    expected = NEEDED.get(key, f"a JSON object with {', '.join(_Line.model_fields)}")
    if steps and isinstance(steps[-1], int):
        expected = ENTRIES.get(key, "a text")
    name = ".".join(map(str, steps))
    return f"{name}: expected {expected}, got {got}" if name else f"expected {expected}, got {got}"
