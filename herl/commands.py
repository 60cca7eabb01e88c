"""What the verbs do: build from the configuration, run, and return a result.

fit       held-out reward -> training -> held-out reward -> summary.json
validate  held-out reward -> summary.json
lint      prompts and rubrics -> lint.json
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers.oc import env as read_environment
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils import logging as transformers_logging

from herl.config import check
from herl.errors import BudgetSpent, ConfigError, DataError, HerlError, JudgeStop
from herl.experience import render
from herl.judge import JudgeDesk
from herl.lint import Finding, bad_rows, findings, read_records
from herl.module import HerlModule
from herl.sharding import FSDPStrategy, check_trainer

PACKAGES = ("herl", "torch", "lightning", "transformers", "hydra-core")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything a verb works with, built from one configuration."""

    module: HerlModule
    data: L.LightningDataModule
    trainer: L.Trainer


def build(config: DictConfig) -> Run:
    """Checks the configuration, then builds its objects.

    Raises:
        ConfigError: before any model is loaded.
    """
    config = deepcopy(config)  # Hydra resolves nodes in place: the caller's may name secrets
    check(config)
    quiet()
    L.seed_everything(config.seed, verbose=False)
    data: L.LightningDataModule = _make(config.data)
    module: HerlModule = _make(config.module)
    trainer: L.Trainer = _make(
        config.trainer,
        callbacks=list(_make(config.callbacks).values()),
        logger=list(_make(config.logger).values()) or False,
    )
    check_trainer(trainer)  # before other processes are started
    _check_sweep(trainer)
    return Run(module=module, data=data, trainer=trainer)


def _make(node: DictConfig, **arguments: Any) -> Any:
    """Builds the object of a node. What herl's own components complain about comes out as it is."""
    try:
        return instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, HerlError):
            raise error.__cause__ from error
        raise


def _check_sweep(trainer: L.Trainer) -> None:
    """Every rank would run the whole sweep, in folders by its own clock."""
    from hydra.core.hydra_config import HydraConfig

    sweeping = HydraConfig.get().mode is RunMode.MULTIRUN
    if sweeping and trainer.world_size > 1:
        raise ConfigError(
            f"trainer.devices: expected 1 in a sweep (-m), got {trainer.world_size} processes a run; "
            "start the runs one by one"
        )


def quiet() -> None:
    """Keeps notices of other libraries that a user can do nothing about off the screen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", module="lightning")
    # every rank logs the whole batch's numbers
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*", module="lightning")


def fit(config: DictConfig) -> dict[str, Any]:
    """Trains, and returns the summary that it also writes to summary.json in the run's folder."""
    started = time.perf_counter()
    run = build(config)
    _check_checkpoint("resume", config.resume, run)
    with _closing(run):
        results: dict[str, Any] = {}
        first = last = None
        try:
            results["heldout_reward_before"], first = _heldout(run, config.resume), run.module.example
            run.trainer.fit(run.module, run.data, ckpt_path=config.resume, weights_only=False)
            results["heldout_reward_after"], last = _heldout(run), run.module.example
        except JudgeStop as stop:
            summary = _finish(config, run, started, results | {"stopped": str(stop)})
            if isinstance(stop, BudgetSpent):  # as asked for
                return summary
            raise
    if first and last:
        results["example"] = {"request": first[0], "before": first[1], "after": last[1]}
    return _finish(config, run, started, results)


def validate(config: DictConfig) -> dict[str, Any]:
    """Measures the held-out reward, and returns the summary that it also writes."""
    started = time.perf_counter()
    checkpoint = config.checkpoint
    run = build(config)
    _check_checkpoint("checkpoint", checkpoint, run)
    with _closing(run):
        heldout = _heldout(run, checkpoint)
    return _finish(config, run, started, {"heldout_reward": heldout})


def lint(config: DictConfig) -> list[Finding]:
    """Looks at prompts and rubrics, and returns what it found and also writes to lint.json.

    Raises:
        DataError: there are errors among it.
    """
    check(config)
    quiet()
    if OmegaConf.select(config, "data.train.on_bad_row") is not None:
        config.data.train.on_bad_row = "skip"  # all of them are to be listed
    data: Any = _make(config.data)
    tokenizer = _make(config.model).tokenizer()
    found = findings(
        {"train": data.train, "heldout": data.heldout},
        prompt_tokens=lambda task: len(render(tokenizer, task.messages)),
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        records=read_records(Path(config.records)) if config.records else (),
    )
    found = bad_rows(Path(config.output_dir)) + found
    listed = [asdict(finding) for finding in found]
    path = Path(config.output_dir) / "lint.json"
    path.write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    _show_findings(found, len(data.train) + len(data.heldout), path)
    errors = sum(finding.level == "error" for finding in found)
    if errors:
        raise DataError(f"the data has {errors} errors: see {path}")
    return found


def _show_findings(found: list[Finding], prompts: int, path: Path) -> None:
    """Prints how often each kind was found, with an example."""
    table = Table("level", "kind", "times", "for example", title=f"herl lint: {prompts} prompts")
    kinds = Counter((finding.level, finding.kind) for finding in found)
    for (level, kind), times in sorted(kinds.items()):
        example = next(finding for finding in found if (finding.level, finding.kind) == (level, kind))
        shown = Text(f"{example.where}: {example.detail}"[:200])
        table.add_row(Text(level, style="red" if level == "error" else "yellow"), kind, str(times), shown)
    console = Console()
    console.print(table if found else f"herl lint: {prompts} prompts, nothing found")
    console.print(f"All of it: {path}")


def _closing(run: Run) -> ExitStack:
    """Ends sampler and judge with the block, also after an error, where Lightning tears nothing down."""
    stack = ExitStack()
    for part in (run.module.stages.sampler, run.module.stages.desk.judge, run.module.stages.desk):
        stack.enter_context(closing(part))
    return stack


def _check_checkpoint(key: str, path: str | None, run: Run) -> None:
    if path is None:
        return
    if not Path(path).exists():
        raise ConfigError(f"{key}: expected a checkpoint written by herl fit, got '{path}'")
    if Path(path).is_dir() and not isinstance(run.trainer.strategy, FSDPStrategy):
        raise ConfigError(f"{key}: expected a file, got the sharded checkpoint '{path}': add strategy=fsdp")
    if Path(path).is_file() and isinstance(run.trainer.strategy, FSDPStrategy) and run.module.model.lora:
        raise ConfigError(
            f"{key}: expected a sharded checkpoint, got the file '{path}': Lightning cannot give the moments "
            "of adapters from one file to FSDP; resume without strategy=fsdp"
        )


def _heldout(run: Run, checkpoint: str | None = None) -> float | None:
    """Held-out reward of the policy as it is; None without held-out prompts."""
    run.trainer.validate(run.module, run.data, ckpt_path=checkpoint, weights_only=False, verbose=False)
    reward = run.trainer.callback_metrics.get("heldout/reward")
    return None if reward is None else float(reward)


def _finish(config: DictConfig, run: Run, started: float, results: dict[str, Any]) -> dict[str, Any]:
    from hydra.core.hydra_config import HydraConfig

    seconds = {name: round(value, 2) for name, value in run.module.clock.seconds.items()}
    seconds["total"] = round(time.perf_counter() - started, 2)
    counts = run.module.counts
    choices = HydraConfig.get().runtime.choices
    summary = {
        "experiment": choices.get("experiment"),
        "algorithm": choices.get("algorithm"),
        "seed": config.seed,
        **results,
        "prompts": counts["prompts"],
        "answers_sampled": counts["answers_sampled"],
        "revisions_sampled": counts["revisions_sampled"],
        "tokens_sampled": counts["tokens_sampled"],
        "optimizer_steps": counts["optimizer_steps"],
        "judge": _judge_summary(run.module.stages.desk),
        "processes": run.trainer.world_size,
        "seconds": seconds,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
    if not run.trainer.is_global_zero:
        return summary
    folder = Path(config.output_dir)
    with _environment_unread():
        OmegaConf.save(config, folder / "config.yaml", resolve=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _show(summary, folder)
    return summary


@contextmanager
def _environment_unread() -> Iterator[None]:
    """Lets ${oc.env:NAME} stand for itself: what it reads may be a secret."""

    def as_written(name: str, *default: str) -> str:
        return "${oc.env:" + ",".join([name, *default]) + "}"

    OmegaConf.register_new_resolver("oc.env", as_written, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", read_environment, replace=True)


def _judge_summary(desk: JudgeDesk) -> dict[str, Any]:
    """What judging cost, where it cost something, and how many verdicts abstained, by cause."""
    usage = desk.state_dict()
    counted = ("calls", "tokens", "cost", "cache_hits", "missing")
    cost = {name: round(usage[name], 6) for name in counted if usage.get(name)}
    faults = {name: int(n) for name, n in sorted(usage.items()) if name.startswith("fault_")}
    return cost | faults | ({"abstained": causes} if (causes := desk.causes()) else {})


def _show(summary: dict[str, Any], folder: Path) -> None:
    """Prints the summary as a table."""
    table = Table("", "", show_header=False, title=f"herl: {summary['experiment']}, {summary['algorithm']}")
    for name, value in summary.items():
        if name in ("experiment", "algorithm", "versions") or value in (None, {}):
            continue
        if name == "seconds":
            value = ", ".join(f"{phase} {spent:g}" for phase, spent in value.items())
        if name == "example":
            value = "\n".join(f"{when}: {text}" for when, text in value.items())
        shown = f"{value:.3f}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), Text(shown))
    table.add_row("folder", str(folder))
    console = Console()
    console.print(table)
    console.print(f"Curves: tensorboard --logdir {folder.parent}")
