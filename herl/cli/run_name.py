"""Names the folders of runs after their data and what was changed, so that a list of runs can be read.

    runs/2026-01-31_12-00-00_my_rows_grpo_lr-1e-5_seed-1          a training run
    outputs/2026-01-31_12-30-00_validate_2026-01-31_12-00-00_my_rows_grpo_lr-1e-5_seed-1   another verb on it

OmegaConf resolvers do it: `${run_root:}` and `${run_name:}` in conf/run.yaml, and `${run_changes:KEY,...}`,
which names the runs of a sweep after what it varies. TensorBoard reads `runs`, so other verbs stay out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from herl.report.secret import HIDDEN, plain_value, without_secret

LONGEST = 60
"""Characters of a name; changes that do not fit are left out."""
LONGEST_VALUE = 24
NAMED = ("experiment", "data", "algorithm", "data.train.path")
"""Settings that come first in a name, without their keys."""
UNNAMED = (
    "hydra",
    "resume",
    "run",
    "checkpoint",
    "dry_run",
    "out",
    "output_dir",
    "data.heldout",
    "trainer.devices",
)
"""Settings that do not tell runs apart, with all below them."""


def register() -> None:
    """Makes the resolvers known to OmegaConf."""
    OmegaConf.register_new_resolver("run_root", _root, replace=True)
    OmegaConf.register_new_resolver("run_name", _name, replace=True)
    OmegaConf.register_new_resolver("run_changes", _changes_of, replace=True)


def run_name(verb: str, choices: Mapping[str, str], overrides: Sequence[str]) -> str:
    """Returns a name without a slash: the verb unless it is fit, data or experiment, algorithm, changes.

    Args:
        verb: A verb of the command line.
        choices: The choice in each group, as {"algorithm": "herl"}.
        overrides: The overrides that were typed, as ["optimizer.lr=1e-5"].

    >>> typed = ["data.train.path=in/rows.jsonl", "optimizer.lr=1e-5"]
    >>> run_name("fit", {"data": "file", "algorithm": "grpo"}, typed)
    'rows_grpo_lr-1e-5'
    >>> run_name("validate", {"data": "animals"}, ["optimizer.lr=1e-5", "run=runs/first"])
    'validate_first'
    """
    given = _given(overrides)
    parts = [] if verb == "fit" else [verb]
    if given.get("run"):
        return _joined([*parts, _short(given["run"], LONGEST - len(verb) - 1)])
    experiment = choices.get("experiment", "none")
    path = given.get("data.train.path", "")
    data = path if path and _is_nameable("data.train.path", path) else choices.get("data", "")
    parts.append(experiment if experiment != "none" else PurePath(data).stem)
    parts.append(choices.get("algorithm", ""))
    return _joined([*map(_short, parts), *_changes(given)])


def swept(overrides: Sequence[str]) -> list[str]:
    """Returns the keys of the overrides that a sweep varies.

    >>> swept(["seed=0,1", "algorithm=herl", "optimizer.lr=choice(1e-5,1e-6)", "logger=[csv,tensorboard]"])
    ['seed', 'optimizer.lr']
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [one.key_or_group for one in parsed if one.is_sweep_override()]


def _changes(given: Mapping[str, str]) -> Iterator[str]:
    for key, value in given.items():
        above = {key[: dot.start()] for dot in re.finditer(r"[.@/]", key)}
        if key not in NAMED and not {key, *above} & set(UNNAMED):
            yield from _change(key, value)


def _change(key: str, value: str) -> Iterator[str]:
    if _is_nameable(key, value):
        name = re.split(r"[./@]", key)[-1]
        yield _short(value) if name == "path" else f"{name}-{_short(value)}"


def _is_nameable(key: str, value: str) -> bool:
    """Whether a value may stand in a folder's name, which gets copied about: never a secret, and no list,
    mapping or address, since those may hide one."""
    return without_secret(key, value) != HIDDEN and not re.search(r"^[\[{]|[:@?]", value)


def _given(overrides: Sequence[str]) -> dict[str, str]:
    """The settings that were typed. Of keys that herl does not have (`+key`), only those with a number: what
    any other value holds is unknown."""
    pairs = {}
    for override in overrides:
        key, _, value = override.partition("=")
        value = value.strip("'\"")
        if not key.startswith("+") or isinstance(plain_value(value), int | float):
            pairs[key.lstrip("+~")] = value
    return pairs


def _short(value: str, longest: int = LONGEST_VALUE) -> str:
    """The last part of a path, in characters that need no quotes in a shell or in `run=FOLDER`: no `=`."""
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", PurePath(value).name).strip("-")[:longest]


def _joined(parts: Sequence[str]) -> str:
    name = ""
    for part in filter(None, parts):
        if len(name) + 1 + len(part) <= LONGEST:
            name = f"{name}_{part}" if name else part
    return name


def _root(*, _root_: Any) -> str:
    trains = _root_.hydra.job.config_name == "fit" and not _root_.get("dry_run")
    return "runs" if trains else "outputs"


def _changes_of(*keys: str, _root_: Any) -> str:
    given = _given(_root_.hydra.overrides.task)
    return _joined([part for key in keys if key in given for part in _change(key, given[key])])


def _name(*, _root_: Any) -> str:
    hydra = _root_.hydra
    return run_name(hydra.job.config_name, hydra.runtime.choices, list(hydra.overrides.task))
