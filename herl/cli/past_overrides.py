"""The overrides that a run was started with, as far as a command that names the run (run=FOLDER) takes them.

A run's folder may be a stranger's, so its files are data. It has no say in how this command runs: settings
of Hydra and of a verb are left out. Unless this user started the run (`herl.cli.own_runs`), what would run
code of its choice, send prompts to an address of its choice or read the environment must be typed again.
Objects that it names are checked like any other (`herl.targets`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from herl.cli.own_runs import is_own
from herl.config import conf_dir
from herl.config.renamed import renamed
from herl.errors import ConfigError

NOT_OF_A_RUN = {
    "hydra", "output_dir",
    "resume", "dry_run", "cost",  # fit
    "run", "checkpoint", "further_judges", "out", "adapter", "push", "private", "json", "runs", "records",
    "prompt", "rubric", "rounds", "benchmark",
}  # fmt: skip
"""Settings, with all below them, that describe how a command was started, not what the run computed."""
OWN_CODE = {"arguments", "engine", "python_modules", "trust_remote_code"}
"""Keys whose values decide what code runs."""
ADDRESSES = {"base_url", "urls", "url", "tracking_uri"}
"""Keys whose values are addresses that prompts, answers or numbers are sent to."""
KEYS_OF_HOSTS = {"api_key_env", "key_env"}
LOCAL = {"localhost", "127.0.0.1", "::1"}
RESOLVER = re.compile(r"\$\{[^{}]*(?:\$\{|:)")
"""A call of one, such as ${oc.env:NAME}, or an interpolation inside another, which may become one."""


def hydra_of_run(overrides: list[str]) -> str | None:
    """Returns Hydra's folder of the run that a verb continues from (run=FOLDER), if there is one."""
    folders = [one.removeprefix("run=").strip("'\"") for one in overrides if one.startswith("run=")]
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
    past = [renamed(str(one)) for one in found]
    if not any(one.startswith("experiment=") for one in past):
        past = [*_experiment_of_run(kept), *past]
    keys, own = {key_of(one) for one in overrides}, is_own(Path(kept))
    return [one for one in past if _is_taken(path, one, keys, own)]


def carried_over(past: list[str], overrides: list[str]) -> list[str]:
    """Returns the run's overrides, minus the groups this command line sets itself."""
    keys = {key_of(one) for one in overrides}
    # Settings of the old choice do not fit the new one.
    chosen = {key for key in keys if (conf_dir() / key).is_dir()}
    return [one for one in past if re.split(r"[./=]", one.lstrip("+~"), maxsplit=1)[0] not in chosen]


def config_dirs(kept: str) -> list[str]:
    """Returns the --config-dir that a run was started with for its plug-ins.

    Raises:
        ConfigError: it is gone; or it lies in the run's own folder or belongs to another user, so whoever
            wrote the run may have written it, too.
    """
    run = Path(kept).resolve().parent
    sources = _at(_plain(os.path.join(kept, "hydra.yaml")), "hydra", "runtime", "config_sources") or []
    folders = [str(one["path"]) for one in sources if one.get("provider") == "command-line"]
    for folder in folders:
        if not os.path.isdir(folder):
            raise ConfigError(f"run: its --config-dir {folder} does not exist: give --config-dir again")
        place = Path(folder).resolve()
        yours = place.stat().st_uid == os.getuid() or place.is_relative_to(Path.cwd())
        foreign = not Path(folder).is_absolute() or place.is_relative_to(run) or not yours
        if foreign and not is_own(Path(kept)):
            raise ConfigError(f"run: its --config-dir {folder} may be a stranger's: give --config-dir again")
    return folders


def key_of(override: str) -> str:
    """Returns the key or group of an override."""
    return override.lstrip("+~").partition("=")[0]


def _is_taken(path: str, text: str, typed: set[str], own: bool) -> bool:
    """Whether an override of a run says what the run computed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        one = OverridesParser.create().parse_override(text)
    except HydraException as error:  # such as an option of Hydra
        raise ConfigError(f"run: {path}: expected overrides, got '{text}'") from error
    places = [one.key_or_group, *([one.package] if one.package else [])]
    if any(re.split(r"[./]", place, maxsplit=1)[0] in NOT_OF_A_RUN for place in places):
        return False
    if own or key_of(text) in typed:
        return True
    value = None if one.is_delete() else one.value()
    for reason in _reasons(one.key_or_group.rpartition(".")[2], value):
        raise ConfigError(
            f"run: {path}: '{text}': {reason}. No command of yours on this machine "
            f"started the run; if you trust it, type: {text.lstrip('+')!r}"
        )
    return True


def _reasons(key: str, value: Any) -> Iterator[str]:
    """Why a value must be typed again."""
    if key in OWN_CODE and value not in (None, False, []):
        yield "it decides what code runs"
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _reasons(str(name), child)
        return
    for text in map(str, value if isinstance(value, list) else [value]):
        if RESOLVER.search(text):
            yield "it may read an environment variable"
        if key in ADDRESSES and not _is_local(text):
            yield f"prompts and answers would go to {text}"
    if isinstance(value, list):
        for child in value:
            if isinstance(child, Mapping | list):
                yield from _reasons(key, child)
    if key in KEYS_OF_HOSTS and value is not None:
        yield "it names an environment variable"


def _is_local(address: str) -> bool:
    try:
        host = urlsplit(address).hostname
    except ValueError:
        return False
    return host in LOCAL or (host is None and "${" not in address)  # without a host, it is no address


def _experiment_of_run(kept: str) -> list[str]:
    """The run's experiment, which was the default when it was started."""
    choices = _at(_plain(os.path.join(kept, "hydra.yaml")), "hydra", "runtime", "choices")
    experiment = _at(choices, "experiment")
    return [] if experiment in (None, "none") else [f"experiment={experiment}"]


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
