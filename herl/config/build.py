"""Builds the objects of a run from a composed configuration."""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CUDAAccelerator
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers.utils import logging as transformers_logging

from herl.callbacks.gold_judges import GoldJudges
from herl.callbacks.keep_heldout import KeepHeldout
from herl.config.check import check
from herl.config.early import without_warnings
from herl.config.gold import NOTHING_TO_JUDGE, check_gold, check_hidden
from herl.config.server_gpus import check_servers
from herl.data.hidden import WholeTasks
from herl.distributed import is_first_process
from herl.errors import ConfigError, HerlError
from herl.judge.check_rows import check_rows
from herl.loggers.go_on import going_on
from herl.models.checkpoint_file import check_checkpoint_file
from herl.models.fsdp import FSDPStrategy, check_trainer
from herl.models.precision import default_precision, use_tf32
from herl.module import HerlModule
from herl.rollout.check_prompts import check_prompts
from herl.rollout.improve import Trajectory
from herl.types import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything a verb works with, built from one configuration."""

    module: HerlModule
    data: L.LightningDataModule
    trainer: L.Trainer
    heldout: KeepHeldout
    gold: GoldJudges | None = None

    def validate(self, checkpoint: str | None = None) -> tuple[Trajectory, ...]:
        """Answers the held-out prompts; returns attempts with their revisions, empty without prompts.

        Args:
            checkpoint: Checkpoint whose weights to load; None for the current policy.
        """
        self.trainer.validate(self.module, self.data, ckpt_path=checkpoint, weights_only=True, verbose=False)
        return self.heldout.trajectories

    def closing(self) -> ExitStack:
        """Closes sampler and judge when the block ends, even after an error, where Lightning does not."""
        stack = ExitStack()
        for part in (
            self.module.stages.sampler,
            self.module.stages.judge_runner.judge,
            self.module.stages.judge_runner,
        ):
            stack.enter_context(closing(part))
        if self.gold is not None:
            stack.enter_context(closing(self.gold))
        return stack


def build(
    config: DictConfig,
    data: L.LightningDataModule | None = None,
    callbacks: Sequence[L.Callback] = (),
    *,
    gold: bool = False,
) -> Run:
    """Checks the configuration, then builds its objects.

    Args:
        config: Configuration of a verb that runs a model.
        data: Replaces the configuration's data.
        callbacks: Called before those of the configuration.
        gold: Whether further judges judge the held-out answers at every validation.

    Raises:
        ConfigError: the configuration is invalid; raised before any model is loaded.
    """
    config = deepcopy(config)  # Hydra resolves nodes in place, and the caller's may name secrets
    with suppress(OmegaConfBaseException):  # `check` says what is wrong
        OmegaConf.resolve(config)  # once, so that what is checked is what is built
    check(config)
    if gold:
        check_gold(config)
    quiet()
    L.seed_everything(config.seed, verbose=False)
    with nullcontext() if is_first_process() else without_warnings():
        data = make(config.data) if data is None else data
        module: HerlModule = make(config.module)
        splits = {name: getattr(data, name, ()) for name in ("train", "heldout")}
        if OmegaConf.select(config, "prompt") is None:  # an answer to a typed prompt is shown, judged or not
            check_rows(splits, module.stages.judge_runner.judge)
        module.stages.check_verdicts()  # whether a function gives verdicts is known once it was tried
        judges = _gold_judges(config, splits) if gold else None
        check_prompts(
            splits,
            module.stages.tokenizer,
            module.model.vocab_size(),
            module.stages.environment,
        )
    heldout = KeepHeldout()
    accelerator = config.trainer.accelerator
    if accelerator == "auto":  # Lightning might pick one that herl was never run on
        accelerator = "cuda" if CUDAAccelerator.is_available() else "cpu"
    trainer: L.Trainer = make(
        config.trainer,
        accelerator=accelerator,
        precision=config.trainer.precision or default_precision(accelerator),
        callbacks=[heldout, *([judges] if judges else []), *callbacks, *_several(config, "callbacks")],
        logger=[going_on(one) for one in _several(config, "logger")] or False,
    )
    check_trainer(trainer)  # before other processes are started
    _check_sweep(trainer)
    if trainer.strategy.root_device.type == "cuda":
        check_servers(config)
        use_tf32(config.tf32)
    return Run(module=module, data=data, trainer=trainer, heldout=heldout, gold=judges)


def _several(config: DictConfig, group: str) -> list[Any]:
    """Makes the objects of a group of which several may be chosen, or none, as in logger=[]. One that was
    set to null is left out.

    Raises:
        ConfigError: there are settings of an object that was not chosen.
    """
    nodes = {name: node for name, node in (config.get(group) or {}).items() if node is not None}
    for name, node in nodes.items():
        if "_target_" not in node:
            raise ConfigError(
                f"{group}.{name}: expected an object with _target_, got settings alone ({', '.join(node)}): "
                f"the group {group} was chosen without it"
            )
    return [make(node) for node in nodes.values()]


def _gold_judges(config: DictConfig, splits: Mapping[str, Sequence[Task]]) -> GoldJudges | None:
    """The further judges, which must be able to judge the held-out prompts with all their criteria."""
    judges = {str(name): make(node) for name, node in config.further_judges.items() if node is not None}
    if not judges:
        return None
    validated = "train" if config.trainer.get("overfit_batches") else "heldout"
    if not splits[validated]:
        raise ConfigError(f"{NOTHING_TO_JUDGE} (data.heldout)")
    check_hidden(splits, OmegaConf.select(config, "data.hidden_criteria"))
    whole = WholeTasks(splits[validated])
    for name, judge in judges.items():
        try:
            check_rows({validated: whole}, judge)
        except HerlError as error:
            raise type(error)(f"further_judges.{name}: {error}") from error
    return GoldJudges(judges)


def make(node: DictConfig, **arguments: Any) -> Any:
    """Builds the object of a node. Errors raised by herl's components are passed on unchanged."""
    try:
        return instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, HerlError):
            raise error.__cause__ from error
        if "abstract class" in str(error.__cause__):  # of a user's component, which lacks a method
            raise ConfigError(f"{node._get_full_key(None)}: {error.__cause__}") from error
        refused = isinstance(
            error.__cause__, MisconfigurationException | ModuleNotFoundError | TypeError | ValueError
        )
        if refused and str(node._target_).startswith("lightning."):
            raise ConfigError(f"{node._get_full_key(None)}: {error.__cause__}") from error
        raise
    except SystemExit as error:  # by a user's component; the program would end without a word
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{node._get_full_key(None)}: expected a component, but {at.filename}:{at.lineno} called "
            f"sys.exit({error.code!r})"
        ) from error


def quiet() -> None:
    """Silences notices of other libraries that a user can do nothing about."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", module="lightning")
    # every rank logs the whole batch's numbers
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*", module="lightning")


def resumed_from(config: DictConfig) -> str | None:
    """Returns the checkpoint that `resume` names directly, or the newest of the run's folder or of this run.

    Raises:
        ConfigError: resume=auto in a folder that changes at every start, or the checkpoint is gone.
    """
    if config.resume is None:
        return None
    folder = Path(str(config.resume))
    if config.resume == "auto":
        from hydra.core.hydra_config import HydraConfig

        if not any(one.startswith("hydra.run.dir=") for one in HydraConfig.get().overrides.hydra):
            raise ConfigError("resume=auto needs hydra.run.dir=FOLDER, the same at every start")
        folder = Path(config.output_dir)
        if not (folder / "checkpoints" / "last.ckpt").is_symlink():
            return None
    newest = folder / "checkpoints" / "last.ckpt"
    if newest.is_symlink() and not newest.exists():
        raise ConfigError(
            f"resume: {newest} points to a checkpoint that is gone; name another one in its folder"
        )
    return str(newest.resolve() if newest.exists() else folder)


def check_checkpoint(key: str, path: str | None, run: Run) -> None:
    """Raises a ConfigError if the run cannot start from this checkpoint."""
    if path is None:
        return
    check_checkpoint_file(key, Path(path))
    if Path(path).is_dir() and not isinstance(run.trainer.strategy, FSDPStrategy):
        raise ConfigError(f"{key}: expected a file, got the sharded checkpoint '{path}': add strategy=fsdp")
    if Path(path).is_file() and isinstance(run.trainer.strategy, FSDPStrategy) and run.module.model.lora:
        raise ConfigError(
            f"{key}: expected a sharded checkpoint, got the file '{path}': Lightning cannot load the "
            "optimizer moments of adapters from one file into FSDP; resume without strategy=fsdp"
        )


def _check_sweep(trainer: L.Trainer) -> None:
    """Rejects sweeps on several ranks: each would run the whole sweep, in folders named by its own clock."""
    from hydra.core.hydra_config import HydraConfig

    sweeping = HydraConfig.get().mode is RunMode.MULTIRUN
    if sweeping and trainer.world_size > 1:
        raise ConfigError(
            f"trainer.devices: expected 1 in a sweep (-m), got {trainer.world_size} processes per run; "
            "start the runs one by one"
        )
