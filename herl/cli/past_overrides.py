"""The overrides that a run was started with, as far as a command that names the run (run=FOLDER) takes them.

A run's folder may be a stranger's, so its files are data. It has no say in how this command runs: settings
of Hydra and of a verb are left out. Unless this user started the run (`herl.cli.own_runs`), these must be
typed again: what decides which code runs, what may read the environment, and all texts for judge, sampler,
logger, callbacks and trainer, which write files and talk to servers. Objects that a run names are checked
like any other (`herl.targets`).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herl.cli.own_runs import is_own
from herl.cli.prose import path_in
from herl.config import conf_dir
from herl.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

NOT_OF_A_RUN = {
    "hydra", "output_dir",
    "resume", "dry_run", "cost",  # fit
    "run", "checkpoint", "further_judges", "out", "adapter", "push", "private", "json", "runs", "records",
    "prompt", "rubric", "rounds", "benchmark",
    "answers", "human", "audit",
}  # fmt: skip
"""Settings, with all below them, that describe how a command was started, not what the run computed."""
OWN_CODE = {"arguments", "engine", "python_modules", "trust_remote_code"}
"""Keys whose values decide what code runs."""
REACHING = {"judge", "judges", "sampler", "logger", "callbacks", "trainer"}
"""Parts that write files or talk to servers."""


def hydra_of_run(overrides: list[str]) -> str | None:
    """Returns Hydra's folder of the run that a verb continues from (run=FOLDER), if there is one."""
    folders = [path_in(one.removeprefix("run=")) for one in overrides if one.startswith("run=")]
    if not folders:
        return None
    kept = os.path.join(folders[-1], ".hydra")
    for name in ("overrides.yaml", "hydra.yaml"):
        if not os.path.isfile(path := os.path.join(kept, name)):
            raise ConfigError(f"run: expected the folder of a run with {path}, got '{folders[-1]}'")
    return kept


def past_overrides(overrides: list[str]) -> list[str]:
    """Returns the overrides that a run was started with, by today's names.

    Args:
        overrides: Those of this command, with the run's folder; what they set again is not checked.

    Raises:
        ConfigError: the folder is no run's, or has an override that must be typed again.
    """
    if not (kept := hydra_of_run(overrides)):
        return []
    path = os.path.join(kept, "overrides.yaml")
    found = _plain(path)
    if not isinstance(found, list):
        raise ConfigError(f"run: expected a list of overrides in '{path}', got {found!r}")
    past = [str(one) for one in found]
    typed = {key_of(one) for one in overrides}
    read = {one: _read(path, one) for one in past}
    taken = [one for one in past if not _belongs_to_command(read[one])]
    unsafe = {one: why for one in taken if key_of(one) not in typed and (why := _why_unsafe(read[one]))}
    if unsafe and not is_own(Path(kept)):
        found = "".join(f"\n  {one}: {why}" for one, why in unsafe.items())
        again = shlex.join(one.lstrip("+") for one in unsafe)
        raise ConfigError(
            f"run: no command of yours on this machine started the run in {path}, and it sets:{found}\n"
            f"If you trust it, add to your command: {again}"
        )
    return taken


def carried_over(past: list[str], overrides: list[str]) -> list[str]:
    """Returns the run's overrides, minus the groups this command line sets itself."""
    keys = {key_of(one) for one in overrides}
    # Settings of the old choice do not fit the new one.
    chosen = {key for key in keys if (conf_dir() / key).is_dir()}
    return [one for one in past if re.split(r"[./=]", one.lstrip("+~"), maxsplit=1)[0] not in chosen]


def config_dirs(kept: str) -> list[str]:
    """Returns the --config-dir that a run was started with for its plug-ins.

    Raises:
        ConfigError: it is gone; or this user did not start the run, and whoever did may have written it, too.
    """
    sources = _at(_plain(os.path.join(kept, "hydra.yaml")), "hydra", "runtime", "config_sources") or []
    folders = [str(one["path"]) for one in sources if one.get("provider") == "command-line"]
    for folder in folders:
        if not os.path.isdir(folder):
            raise ConfigError(f"run: its --config-dir {folder} does not exist: give --config-dir again")
        if not is_own(Path(kept)):
            raise ConfigError(f"run: its --config-dir {folder} may be a stranger's: give --config-dir again")
    return folders


def key_of(override: str) -> str:
    """Returns the key or group of an override."""
    return override.lstrip("+~").partition("=")[0]


def _read(path: str, text: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:  # also for options of Hydra
        raise ConfigError(f"run: {path}: expected overrides, got '{text}'") from error


def _places(one: Override) -> list[str]:
    return [one.key_or_group, *([one.package] if one.package else [])]


def _belongs_to_command(one: Override) -> bool:
    """Whether an override says how a command was started, not what the run computed."""
    return any(re.split(r"[./]", place, maxsplit=1)[0] in NOT_OF_A_RUN for place in _places(one))


def _why_unsafe(one: Override) -> str:
    """Why an override must be typed again if a stranger wrote it; "" if it need not be."""
    if one.is_delete() or _is_choice(one.key_or_group, one.value()):
        return ""
    return next(_reasons(".".join(_places(one)).split("."), one.value()), "")


def _is_choice(group: str, value: Any) -> bool:
    """Whether this chooses herl's own options, such as judge=llm or logger=[tensorboard,csv]."""
    names = value if isinstance(value, list) else [value]
    options = {path.stem for path in (conf_dir() / group).glob("*.yaml")}
    return all(isinstance(name, str) and name in options for name in names)


def _reasons(names: list[str], value: Any) -> Iterator[str]:
    """Why a value must be typed again."""
    if not OWN_CODE.isdisjoint(names) and value not in (None, False, []):
        yield "it decides what code runs"
    elif isinstance(value, Mapping):
        for name, child in value.items():
            yield from _reasons([*names, *str(name).split(".")], child)
    elif isinstance(value, list):
        for child in value:
            yield from _reasons(names, child)
    elif value is None or isinstance(value, bool | int | float):
        return
    elif "${" in str(value):
        yield "it may read an environment variable"
    elif not REACHING.isdisjoint(names):
        yield "it may decide what is written, or where prompts and answers go"


def _plain(path: str) -> Any:
    """A file of a run, with interpolations as they were written."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"run: expected the YAML that a run wrote in '{path}', but {said}") from error


def _at(node: Any, *names: str) -> Any:
    for name in names:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node
