"""Rows of an environment of `verifiers` as tasks, whose rubric is the environment's reward functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herl.data.datamodule import RubricDataModule
from herl.data.view import TaskView
from herl.errors import ConfigError, DataError
from herl.types import Task
from herl.verifiers.episode import chat
from herl.verifiers.loading import PLACE, SPLIT, Loaded, loaded


class EnvironmentTasks(TaskView):
    """The rows of a split. Their other columns (answer, info, ...) are the tasks' `meta`.

    Args:
        environment: The environment.
        split: `train` or `eval`.
    """

    def __init__(self, environment: Loaded, split: str) -> None:
        self._rows = environment.rows(split)
        super().__init__(range(len(self._rows) if self._rows is not None else 0))
        self._rubric, self._split = environment.rubric, split
        self.path = f"{environment.name}, {split}"

    def _task(self, place: int) -> Task:
        row = self._rows[place]
        try:
            messages = tuple(chat(row["prompt"]))
        except DataError as error:
            raise DataError(f"{self.path}, row {place + 1}: {error}") from error
        others = {name: cell for name, cell in row.items() if name != "prompt"}
        return Task(
            id=f"{self._split}-{place + 1}",
            messages=messages,
            rubric=self._rubric,
            source=self.path,
            meta={**others, SPLIT: self._split, PLACE: place},
        )


def environment_rows(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    heldout_share: float = 0.1,
    heldout_seed: int = 0,
    prompts_per_batch: int = 16,
    seed: int = 0,
    hidden_criteria: float = 0.0,
) -> RubricDataModule:
    """Returns the rows of an environment: its `dataset` to train on, its `eval_dataset` held out.

    Args:
        name: The environment's name; its module must be in HERL_ALLOW_TARGETS.
        arguments: Arguments of its `load_environment`.
        heldout_share: Share of the training rows that are held out if it has no `eval_dataset`.
        heldout_seed: Chooses which.
        prompts_per_batch: Prompts per rollout batch.
        seed: Seed for the order of the prompts.
        hidden_criteria: Share of the criteria that only gold judges see (`herl.data.hidden`).

    Raises:
        ConfigError: it cannot be loaded (`herl.verifiers.loading.Loaded`).
        DataError: a row cannot be used; names the split, the row, and what was expected.
    """
    environment = loaded(name, arguments)
    train, heldout = (EnvironmentTasks(environment, split) for split in ("train", "eval"))
    if not train:
        raise ConfigError(f"data.name: expected an environment with a dataset to train on, got '{name}'")
    return RubricDataModule(
        train,
        heldout,
        heldout_share=heldout_share,
        heldout_seed=heldout_seed,
        prompts_per_batch=prompts_per_batch,
        seed=seed,
        hidden_criteria=hidden_criteria,
    )
