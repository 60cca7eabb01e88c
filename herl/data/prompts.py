"""Prompts to answer without training on them: from a file, a benchmark, or the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from herl.cache_folder import cached_ifbench
from herl.data.formats import MULDIMIF_LABELS, NegativeWeight, Reading, task_of
from herl.data.rows import Row, read_rows
from herl.data.sources import ListedTasks, check_instructions, read_tasks
from herl.errors import ConfigError, DataError
from herl.types import Task

if TYPE_CHECKING:
    from herl.data.datamodule import RubricDataModule


def held_out(
    path: str,
    fields: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    negative_weight: NegativeWeight = "must_say",
    max_prompts: int | None = None,
    prompts_per_batch: int = 16,
    seed: int = 0,
) -> RubricDataModule:
    """Returns the prompts of a file as held-out prompts.

    Args:
        path: A .jsonl, .json, .csv or .parquet file, a folder of them, hf:owner/name[:split] or
            lm_eval:task.yaml[:split].
        fields: herl's field names -> names in this data.
        ignore: Columns to drop without a word.
        negative_weight: Meaning of a negative weight, if the row does not say (`herl.data.formats.Reading`).
        max_prompts: Number of prompts to take, evenly spaced over the file; None for all.
        prompts_per_batch: Prompts answered together.
        seed: Seed of the data module.
    """
    return answered_only(
        spread(read_tasks(path, fields=fields, ignore=ignore, negative_weight=negative_weight), max_prompts),
        prompts_per_batch,
        seed,
    )


def ifbench(max_prompts: int | None = None, prompts_per_batch: int = 16, seed: int = 0) -> RubricDataModule:
    """Returns the prompts of IFBench (arXiv:2507.02833) as held-out prompts.

    Raises:
        ConfigError: the prompts have not been fetched.
    """
    path = cached_ifbench()
    if not path.is_file():
        raise ConfigError(f"benchmark=ifbench: expected {path}; run `herl fetch ifbench` first")
    tasks = read_tasks(path, source="ifbench")
    return answered_only(spread(tasks, max_prompts), prompts_per_batch, seed)


def muldimif(
    path: str, max_prompts: int | None = None, prompts_per_batch: int = 16, seed: int = 0
) -> RubricDataModule:
    """Returns the prompts of a MulDimIF file (arXiv:2505.07591) as held-out prompts.

    Args:
        path: test.json of Junjie-Ye/MulDimIF, or a file of the same form.
        max_prompts: Number of prompts to take, evenly spaced over the file; None for all.
        prompts_per_batch: Prompts answered together.
        seed: Seed of the data module.

    Raises:
        DataError: a row is not one of MulDimIF; names file, row and key.
    """
    tasks = []
    for row in read_rows(path):
        task = task_of(row, Reading(source="muldimif"))
        lacking = [name for name in MULDIMIF_LABELS if not isinstance(task.meta.get(name), str)]
        if "constraints" not in row.value:
            lacking.insert(0, "constraints")
        if lacking:
            raise DataError(f"{row.place}: {lacking[0]}: expected a row of MulDimIF, got one without it")
        tasks.append(task)
    return answered_only(spread(tasks, max_prompts), prompts_per_batch, seed)


def typed_prompt(text: str, rubric: Sequence[Any] = ()) -> RubricDataModule:
    """Returns the one prompt that a user typed.

    Args:
        text: A prompt, or a row of data as JSON.
        rubric: Criteria for a plain prompt, as in a row: texts, or objects with weights and checks.

    Raises:
        DataError: there is no rubric, or the row cannot be used.
    """
    text = text.strip()
    value: Any = {"prompt": text, "rubric": list(rubric)} if rubric else {"prompt": text}
    if text.startswith("{"):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"prompt: expected a prompt or a row as JSON, got invalid JSON ({error})"
            ) from error
    task = task_of(Row(place="prompt", number=1, value=value), Reading())
    if not task.rubric.criteria:
        raise DataError(
            "rubric: expected criteria to judge the answer by, got none. Add "
            "rubric='[Names two rivers., ...]', or give the prompt as a row: "
            '{"prompt": ..., "rubric": [...]}'
        )
    check_instructions(task, "prompt")
    return answered_only([task], 1, 0)


def spread(tasks: Sequence[Task], max_prompts: int | None) -> Sequence[Task]:
    """Returns so many of the tasks, evenly spaced; None for all.

    Raises:
        ConfigError: the number is below 1.
    """
    if max_prompts is not None and max_prompts < 1:
        raise ConfigError(f"data.max_prompts: expected at least 1, or null, got {max_prompts}")
    if max_prompts is None or max_prompts >= len(tasks):
        return tasks
    some = ListedTasks(tasks[place * len(tasks) // max_prompts] for place in range(max_prompts))
    some.path = getattr(tasks, "path", "")
    return some


def answered_only(tasks: Sequence[Task], prompts_per_batch: int, seed: int) -> RubricDataModule:
    """Returns a data module that has these tasks as its held-out prompts."""
    from herl.data.datamodule import RubricDataModule  # heavy, and the early checks need only the rows

    return RubricDataModule(tasks, tasks, prompts_per_batch=prompts_per_batch, seed=seed)
