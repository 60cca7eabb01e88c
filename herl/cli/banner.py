"""The lines at the start of a run: what is trained on what, and where to watch it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from rich.cells import cell_len, set_cell_size

from herl.callbacks import AnswerBudget
from herl.config.build import Run
from herl.data import RubricDataModule
from herl.display.screen import Screen
from herl.dry_run.memory import memory_line
from herl.prompt_text import visible
from herl.report.commands import curves, from_here
from herl.report.secret import without_secret
from herl.report.story import count
from herl.trainer_callbacks import callbacks_of
from herl.update.run_memory import RunMemory
from herl.update.schedule import limited

WIDTH = 80
WHOLE = ("folder", "curves")
"""Lines that may be wider: half of a folder or a command is of no use."""


def show_banner(config: DictConfig, run: Run, memory: RunMemory | None = None) -> None:
    """Prints what a run will do, on standard error of the first rank."""
    if not run.trainer.is_global_zero:
        return
    console = Screen(stderr=True, width=WIDTH)
    for line in banner(_facts(config, run, memory)):
        console.print(line, soft_wrap=True)


def _facts(config: DictConfig, run: Run, memory: RunMemory | None) -> dict[str, str]:
    choices = HydraConfig.get().runtime.choices
    folder = Path(config.output_dir)
    model, hindsight = run.module.model, choices.get("hindsight")
    device = run.trainer.strategy.root_device.type
    charted = any(isinstance(logger, TensorBoardLogger) for logger in run.trainer.loggers)
    adapters = (", LoRA" if model.lora else "") + (f" on {model.quantization}" if model.quantization else "")
    revised = f", hindsight {hindsight}" if run.module.stages.hindsight.revises else ""
    return {
        "model": f"{model.path}, {rounded(model.parameters())} parameters{adapters}, "
        f"{run.trainer.precision} on {device}",
        "data": ", ".join([str(choices.get("data")), *_rows(run.data)]),
        "judge": ", ".join([str(choices.get("judge")), *_judge(config)]),
        "algorithm": f"{choices.get('algorithm')}{revised}, seed {config.seed}",
        "budget": ", ".join(_budget(run)),
        "memory": memory_line(memory) if memory else "",
        "folder": from_here(folder),
        "curves": curves(folder) if charted else "",
    }


def _rows(data: Any) -> Iterator[str]:
    for name, words in (("train", "rows to train on"), ("heldout", "held out")):
        if hasattr(data, name):  # a data module of the user's own may name them otherwise
            yield f"{count(len(getattr(data, name)))} {words}"


def _judge(config: DictConfig) -> Iterator[str]:
    """The judge's model or function, wherever the judge keeps its name."""
    for key in ("judge.chat.model", "judge.chat.path", "judge.function", "judge.model"):
        value = OmegaConf.select(config, f"module.{key}", default=None)
        if isinstance(value, str):
            yield without_secret(key, value)


def _budget(run: Run) -> Iterator[str]:
    trainer, epochs, batches = run.trainer, run.trainer.max_epochs, _batches(run)
    limits = [budget for budget in callbacks_of(trainer, AnswerBudget) if budget.answers or budget.tokens]
    if epochs is not None and epochs != -1:
        each = f" of {count(batches)} {'batch' if batches == 1 else 'batches'}" if batches else ""
        yield f"{epochs} {'epoch' if epochs == 1 else 'epochs'}{each}"
        if batches and trainer.max_steps == -1 and not limits:
            steps = epochs * batches * run.module.updater.updates_per_batch
            yield f"up to {count(steps)} optimizer {'step' if steps == 1 else 'steps'}"
    if trainer.max_steps != -1:
        yield f"{count(trainer.max_steps)} optimizer steps"
    for budget in limits:
        if budget.answers is not None:
            yield f"at most {count(budget.answers)} sampled answers"
        if budget.tokens is not None:
            yield f"at most {count(budget.tokens)} sampled tokens"


def _batches(run: Run) -> int | None:
    """Batches of an epoch; None if the data or a setting of the trainer decides otherwise."""
    if getattr(run.trainer, "overfit_batches", False) or not isinstance(run.data, RubricDataModule):
        return None
    whole = math.ceil(len(run.data.train) / run.data.prompts_per_batch)
    return limited(run.trainer.limit_train_batches, whole)


def banner(lines: Mapping[str, str], width: int = WIDTH) -> list[str]:
    """Returns one line for each fact, `name  value`, none wider than `width` except those of `WHOLE`.

    Facts without a value are left out. A value that is too long keeps its end, since the end of a path tells
    models and data apart.
    """
    kept = {
        name: visible(value if name in WHOLE else " ".join(value.split()))
        for name, value in lines.items()
        if value.strip()
    }
    column = max((cell_len(name) for name in kept), default=0) + 2
    return [
        set_cell_size(name, column) + (value if name in WHOLE else _fitted(value, width - column))
        for name, value in kept.items()
    ]


def rounded(number: float) -> str:
    """Returns a large number in three digits, as 135M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _fitted(value: str, width: int) -> str:
    if cell_len(value) <= width:
        return value
    while cell_len(value) > width - 3:
        value = value[1:]
    return f"...{value}"
