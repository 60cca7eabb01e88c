"""Checks that need no torch and take a second or two: what was typed, the model, the rows, the judge.

`herl.config.build` checks everything, but only once torch, Lightning and the tokenizer are loaded. What would
take long here is left to it: large files, data from a hub, and components that import more.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from herl.config.check import check, check_value, holds_target, mistakes, without_value, written
from herl.config.gold import check_gold
from herl.config.signatures import argument_type
from herl.data.mix import HeldoutSource, heldout_mix, heldout_sources, train_mix, train_sources
from herl.data.mix_order import MixedOrder
from herl.data.prompts import spread
from herl.data.rows import HUB, LM_EVAL
from herl.data.sources import read_tasks
from herl.data.split import check_any, split_off
from herl.errors import ConfigError, HerlError
from herl.judge.base import Judge, check_gives_verdicts
from herl.judge.check_rows import check_rows
from herl.models.push import check_push
from herl.models.source import check_source
from herl.targets import check_targets, configured
from herl.types import Task

MAX_BYTES = 4 * 2**20
"""Larger files are read once only, by the run itself."""
READERS = ("herl.data.sources.read_tasks", "herl.data.prompts.held_out")
MIXES: dict[str, tuple[Callable[..., Mapping[str, HeldoutSource]], Callable[..., Sequence[Task]]]] = {
    "herl.data.mix.train_mix": (train_sources, train_mix),
    "herl.data.mix.heldout_mix": (heldout_sources, heldout_mix),
}
"""Readers of several files, with what checks their settings."""
LIGHT = (
    "herl.judge.rule.",
    "herl.judge.function.",
    "herl.judge.instruction_following.",
    "herl.judge.mix.",
    "herl.judge.aggregation.",
)
"""Judges and their parts that need no torch."""
LIGHT_PARTS = (
    "herl.types.",
    "herl.rollout.stages.",
    "herl.hindsight.",
    "herl.advantages.",
    "herl.bonus.",
    "herl.environment.",
    "herl.judge.llm.endpoint.",
)
"""Other components that need none, and whose settings have limits."""


def check_early(
    config: DictConfig, typed: Sequence[str] = (), *, judges: bool = True, gold: bool = False
) -> None:
    """Checks what was typed, the model's place, and whether the judge can judge the rows.

    Args:
        config: A composed configuration.
        typed: The overrides of the command line.
        judges: Whether answers will be judged.
        gold: Whether further judges judge at every validation, as in `herl fit`.

    Raises:
        ConfigError: a setting is wrong, there is no such model, or the function of judge=function fails.
        DataError: a row cannot be used, or cannot be judged.
    """
    _check_typed(config, [one.lstrip("+").partition("=")[0] for one in typed])
    if OmegaConf.select(config, "model._target_") == "herl.models.pretrained.PretrainedModel":
        check_source(str(config.model.path))
    resume = OmegaConf.select(config, "resume")
    if resume not in (None, "auto") and not Path(str(resume)).exists():
        raise ConfigError(f"resume: expected a checkpoint or a folder of a run, but there is no '{resume}'")
    if gold:
        check_gold(config)
    if (repository := OmegaConf.select(config, "push")) is not None:
        check_push(str(repository))
    if "audit" in config:
        for key in ("answers", "human"):
            if (place := OmegaConf.select(config, key)) is not None and not Path(str(place)).exists():
                raise ConfigError(f"{key}: expected recorded answers or verdicts, but there is no '{place}'")
        if config.answers is None and config.run is None:
            raise ConfigError(
                "answers: expected a run's folder or a JSONL file, as in: herl audit run=runs/..."
            )
    if judges:
        with without_warnings():
            _check_rows(config)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silences herl's warnings: of all that look at the rows, only the first process's run itself warns."""
    herl = logging.getLogger("herl")
    before = herl.level
    herl.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        herl.setLevel(before)


def _check_typed(config: DictConfig, keys: Sequence[str]) -> None:
    """Checks the values of keys by the types in the source, and their limits where that needs no torch."""
    try:
        missing = sorted(OmegaConf.missing_keys(config))
    except OmegaConfBaseException as error:
        raise without_value(error) from error
    if missing:
        raise ConfigError(f"{missing[0]}: expected a value, got none: herl explain {missing[0]}")
    problems: list[str] = []
    for key in keys:
        parent, _, name = key.rpartition(".")
        node = _plain(config, parent)
        target = node.get("_target_")
        if (
            target and name in node and not holds_target(node[name])
        ):  # classes of the source are not real ones
            try:
                shown = written(config, key, node[name])
                check_value(key, node[name], argument_type(str(target), name), shown)
            except ConfigError as error:
                problems.append(str(error))
    places = {key[: dot.start()] for key in keys for dot in re.finditer(r"\.", key)}
    for place in sorted(places) if not problems else ():
        node = _plain(config, place)
        if str(node.get("_target_")).startswith(LIGHT_PARTS):
            try:
                check_targets(place, node)  # parts of it may be named by anyone
                instantiate(node, _convert_="all")
            except ConfigError as error:
                problems.append(str(error))
            except InstantiationException as error:
                problems += [str(error.__cause__)] if isinstance(error.__cause__, HerlError) else []
    if problems:
        raise ConfigError(mistakes(problems))


def _plain(config: DictConfig, key: str) -> dict[Any, Any]:
    """A part of the configuration; {} if it is no mapping, or has a mistake that a later check names."""
    with suppress(OmegaConfBaseException, ValueError):
        node = OmegaConf.select(config, key) if key else None
        if isinstance(node, DictConfig):
            return cast(dict[Any, Any], OmegaConf.to_container(node, resolve=True))
    return {}


def _check_rows(config: DictConfig) -> None:
    if OmegaConf.select(config, "prompt") is not None:  # typed on the command line
        return
    if OmegaConf.select(config, "benchmark.data") is not None:  # brings its own rows and judge
        return
    try:
        data = OmegaConf.to_container(config.data, resolve=True)
        judge = OmegaConf.to_container(config.judge, resolve=True)
    except OmegaConfBaseException:  # the check of the whole configuration will say so
        return
    splits: dict[str, Sequence[Task]] = {}
    if isinstance(data, Mapping):
        splits = _rows(data)
        _check_split(data, splits)
    if not all(target.startswith(LIGHT) for target in _targets(judge)):
        return
    check(OmegaConf.create({"judge": judge}))
    made = _made(config.judge)
    if not splits:
        return
    check_rows(splits, made)
    needed = {"hindsight": _has("needs_verdicts", config, "hindsight")}
    needed["advantages"] = any(_has("needs_verdicts", config, part) for part in ("advantages", "emphasis"))
    needed["selection"] = OmegaConf.select(config, "selection.joins") == "new"
    teaches = bool(OmegaConf.select(config, "teacher.coef"))
    needed["teacher"] = teaches and OmegaConf.select(config, "teacher.tell") == "missed"
    check_gives_verdicts(made, needed)
    shown = {"hindsight": _has("tells", config, "hindsight"), "teacher": teaches}
    for part in (name for name, is_shown in shown.items() if is_shown):
        if not any(task.rubric.criteria for task in chain(*splits.values())):
            raise ConfigError(
                f"{part}: expected rows with a rubric, which {part}=told shows to the policy, got none: use "
                "algorithm=grpo with teacher=none"
            )


def _check_split(data: Mapping[Any, Any], splits: Mapping[str, Sequence[Task]]) -> None:
    train = splits.get("train")
    if train is None:
        return
    heldout = splits.get("heldout", ())
    check_any(train, heldout)
    if not heldout and (share := data.get("heldout_share")):
        train, _ = split_off(train, share, data.get("heldout_seed", 0))
    if weights := getattr(train, "weights", {}):
        MixedOrder([task.source for task in train], weights, 0, data.get("prompts_per_batch", 1))


def _rows(data: Mapping[Any, Any]) -> dict[str, Sequence[Task]]:
    """The rows of the files that the data names, by split, chosen as in the run."""
    splits: dict[str, Sequence[Task]] = {}
    for name, node in {"": data, **data}.items():
        if not isinstance(node, Mapping) or node.get("_target_") not in (*READERS, *MIXES):
            continue
        check(OmegaConf.create({"data": {name: node} if name else node}))
        arguments = {str(key): value for key, value in node.items() if not str(key).startswith("_")}
        if node["_target_"] in MIXES:
            sources, mix = MIXES[node["_target_"]]
            soon = all(_is_soon_read(one.path) for one in sources(arguments["sources"]).values())
            if arguments["sources"] is not None and soon:
                splits[str(name)] = mix(**arguments)
        elif arguments["path"] is not None and _is_soon_read(str(arguments["path"])):
            of_batches = {"prompts_per_batch", "seed"}  # arguments of `held_out` that choose no rows
            chosen = {key: value for key, value in arguments.items() if key not in of_batches}
            count = chosen.pop("max_prompts", None)
            splits[str(name)] = spread(read_tasks(**chosen), count)
    return splits


def _is_soon_read(path: str) -> bool:
    """Whether a path is a file of a moderate size. A file that is missing is: the error comes at once."""
    file = Path(path).expanduser()
    return (
        not path.startswith((HUB, LM_EVAL))
        and not file.is_dir()
        and (not file.exists() or file.stat().st_size <= MAX_BYTES)
    )


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for child in node.values():
            yield from _targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from _targets(child)


def _made(node: DictConfig) -> Judge:
    try:
        made: Judge = instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, HerlError):
            raise error.__cause__ from error
        raise
    return made


def _has(attribute: str, config: DictConfig, part: str) -> bool:
    """Whether an attribute of herl's own component for a part of the run is set."""
    target = str(OmegaConf.select(config, f"{part}._target_"))
    return target.startswith("herl.") and bool(
        getattr(configured(f"{part}._target_", target), attribute, False)
    )
