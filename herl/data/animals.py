"""The embedded task: requests about sixty animals, with hidden rubrics. Ships with the package."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import as_file, files
from typing import Literal

from herl.data.datamodule import RubricDataModule
from herl.data.sources import read_tasks
from herl.types import Rubric, Task

LENGTH_WEIGHT = {"tight": 6.0, "loose": 2.0}
"""Weight of the word limit. Tight: the policy must choose what to say. Loose: saying everything nearly
works."""


def animals(
    regime: Literal["tight", "loose"] = "tight",
    prompts_per_batch: int = 16,
    tuning: bool = False,
    seed: int = 0,
    hidden_criteria: float = 0.0,
) -> RubricDataModule:
    """Returns 288 training and 72 held-out prompts; two animals per verb and class are held out.

    Args:
        regime: Sets the weight of the word limit (`LENGTH_WEIGHT`).
        prompts_per_batch: Prompts per rollout batch.
        tuning: Holds out every fourth training prompt instead, so that settings can be tuned without the
            real held-out prompts.
        seed: Seed for the order of the prompts.
        hidden_criteria: Share of the criteria that only gold judges see (`herl.data.hidden`).
    """
    splits: dict[str, list[Task]] = {}
    with as_file(files("herl").joinpath("assets", "animals.jsonl")) as path:
        for split in ("train", "heldout"):
            tasks = read_tasks(path, where={"split": split})
            splits[split] = [_with_length_weight(task, LENGTH_WEIGHT[regime]) for task in tasks]
    if tuning:
        splits["heldout"] = splits["train"][::4]
        splits["train"] = [task for place, task in enumerate(splits["train"]) if place % 4]
    return RubricDataModule(
        splits["train"],
        splits["heldout"],
        prompts_per_batch=prompts_per_batch,
        seed=seed,
        hidden_criteria=hidden_criteria,
    )


def _with_length_weight(task: Task, weight: float) -> Task:
    criteria = tuple(
        replace(criterion, weight=weight) if criterion.id == "length" else criterion
        for criterion in task.rubric.criteria
    )
    return replace(task, rubric=Rubric(criteria=criteria))
