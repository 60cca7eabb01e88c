"""Converts the arguments of a verb to Hydra's, with the overrides that run= carries over."""

from __future__ import annotations

import os
import re

from herl.cli.prose import quoted
from herl.config import conf_dir
from herl.config.aliases import CommandLine, choices, translated
from herl.display.terminal import say
from herl.distributed import is_first_process
from herl.errors import ConfigError

NOT_OF_A_RUN = ("hydra.", "resume=", "dry_run=", "cost.", "run=", "json=")
"""Prefixes of overrides that describe how a run was started, not what it computes."""
CONFIG_DIR = {"-cd", "--config-dir"}
VALUED = CONFIG_DIR | {"-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name"}
"""Hydra options with a value."""
INFO = {"-i", "--info"}
"""Hydra options with an optional value."""
POSITIONAL = {"inspect": "run", "compare": "runs"}
"""Verbs that take folders of runs without a key, and the key they stand for."""
SWEEPS = {"-m", "--multirun"}
SHOWS = {"-c", "--cfg", "-i", "--info", "-sc", "--shell-completion", "--version", "--hydra-help"}
"""Hydra options that show something instead of starting a run."""
OTHER_CONF = {"-cp", "--config-path", "-cn", "--config-name"}
"""Hydra options that replace conf/fit.yaml, which may then name everything."""
BENCHMARK_KEYS = {
    "aggregation": "benchmark.judge",
    "data": "benchmark.data",
    "judge": "benchmark.judge",
    "module.judge": "benchmark.judge",
    "rollout.attempt.temperature": "benchmark.heldout.temperature",
    "rollout.attempt.top_p": "benchmark.heldout.top_p",
    "rollout.heldout": "benchmark.heldout",
    "validation.sampling": "benchmark.heldout",
    "module.validation_attempts": "benchmark.attempts",
    "validation.attempts": "benchmark.attempts",
}
"""Keys that a benchmark overrides, and the keys it takes its values from."""


def for_hydra(verb: str, arguments: list[str]) -> list[str]:
    """Returns Hydra's options and overrides for the arguments of a verb.

    Raises:
        ConfigError: run= does not name a run, an override would have no effect, or a rubric is unclear.
    """
    options, overrides = _split(verb, arguments)
    if verb in POSITIONAL:
        return [*options, *overrides]
    if verb == "improve":
        overrides = [quoted(one) for one in overrides]
    past = _past(overrides)
    options = [*_options_of_run(options, overrides), *options]
    names = {one.partition("=")[0] for one in options}
    chosen = choices([*past, *overrides])
    line = CommandLine(
        verb=verb,
        choices=chosen,
        sweeps=bool(names & SWEEPS),
        own_experiment=bool(names & CONFIG_DIR) and "experiment" in chosen,
    )
    overrides, lines = translated(overrides, line)
    _say(lines)
    if verb in ("test", "improve"):
        _check_benchmark(overrides)
    return [
        *options,
        *_carried_over(past, overrides),
        *overrides,
    ]  # Hydra wants the overrides to be contiguous


def _say(lines: list[str]) -> None:
    """Prints lines on stderr, once for all ranks of a run."""
    for line in lines if is_first_process() else []:
        say(line, stderr=True)


def lacking(arguments: list[str]) -> tuple[str, ...]:
    """Returns which of data and model arguments of `for_hydra` do not name, although `herl fit` needs both.

    An experiment names both; a typed experiment=none means the default of the one that is not named.
    Nothing is lacking if no run would start.
    """
    options, overrides = _split("fit", arguments)
    if {one.partition("=")[0] for one in options} & (SHOWS | OTHER_CONF):
        return ()
    given = dict(one.lstrip("+").partition("=")[::2] for one in overrides)
    named = {key for key, value in given.items() if value.strip("'\"") not in ("", "none", "null")}
    if "experiment" in named:
        return ()
    needed = {"data": {"data", "data._target_"}, "model": {"model", "model.path", "model._target_"}}
    missing = tuple(name for name, keys in needed.items() if not keys & named)
    return () if "experiment" in given and len(missing) == 1 else missing


def _split(verb: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into options, with their values, and overrides; adapts `herl inspect RUN --json` and
    `herl compare RUN RUN`."""
    options: list[str] = []
    overrides: list[str] = []
    folders: list[str] = []
    place = 0  # of the first folder among the overrides
    for word in arguments:
        before = options[-1] if options else ""
        if before in VALUED or (before in INFO and "=" not in word):
            options.append(word)
        elif word == "--json" and verb == "inspect":
            overrides.append("json=true")
        elif word.startswith("-"):
            options.append(word)
        elif verb in POSITIONAL and "=" not in word:
            place = place if folders else len(overrides)
            folders.append(f"'{word}'")
        else:
            overrides.append(word)
    if folders:
        listed = f"[{','.join(folders)}]" if verb == "compare" else folders[-1]
        overrides.insert(place, f"{POSITIONAL[verb]}={listed}")
    if options and options[-1] in INFO:
        options[-1] = "--info=all"  # otherwise it would consume the first override
    return options, overrides


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _check_benchmark(overrides: list[str]) -> None:
    """Rejects overrides that would have no effect with benchmark=."""
    given = {_key(one): one.partition("=")[2].strip("'\"") for one in overrides}
    chosen = given.get("benchmark", "")
    if chosen in ("", "none", "null") or "," in chosen or "prompt" in given:
        return
    for override in overrides:
        for key, instead in BENCHMARK_KEYS.items():
            if re.match(rf"{re.escape(key)}($|[./@])", _key(override)):
                raise ConfigError(
                    f"{override}: no effect with benchmark={chosen}, which brings its own: set {instead}"
                )


def _hydra_of_run(overrides: list[str]) -> str | None:
    """Hydra's folder of the run that a verb continues from (run=FOLDER)."""
    folders = [one.removeprefix("run=").strip("'\"") for one in overrides if one.startswith("run=")]
    if not folders:
        return None
    kept = os.path.join(folders[-1], ".hydra")
    for name in ("overrides.yaml", "hydra.yaml"):
        if not os.path.isfile(path := os.path.join(kept, name)):
            raise ConfigError(f"run: expected the folder of a run with {path}, got '{folders[-1]}'")
    return kept


def _past(overrides: list[str]) -> list[str]:
    """The overrides that a run was started with (run=FOLDER), by today's names."""
    if not (kept := _hydra_of_run(overrides)):
        return []
    from omegaconf import OmegaConf

    from herl.config.renamed import renamed

    past = [renamed(str(one)) for one in OmegaConf.load(os.path.join(kept, "overrides.yaml"))]
    if not any(one.startswith("experiment=") for one in past):
        past = [*_experiment_of_run(kept), *past]
    return past


def _carried_over(past: list[str], overrides: list[str]) -> list[str]:
    """The run's overrides, minus the groups this command line sets itself."""
    keys = {_key(one) for one in overrides}
    # Settings of the old choice do not fit the new one.
    chosen = {key for key in keys if (conf_dir() / key).is_dir()}
    return [
        override
        for override in past
        if not override.startswith(NOT_OF_A_RUN)
        and re.split(r"[./=]", override.lstrip("+~"), maxsplit=1)[0] not in chosen
    ]


def _experiment_of_run(kept: str) -> list[str]:
    """The run's experiment, which was the default when it was started."""
    from omegaconf import OmegaConf

    choices = OmegaConf.load(os.path.join(kept, "hydra.yaml")).hydra.runtime.get("choices", {})
    experiment = choices.get("experiment")
    return [] if experiment in (None, "none") else [f"experiment={experiment}"]


def _options_of_run(options: list[str], overrides: list[str]) -> list[str]:
    """The --config-dir that a run was started with for its plug-ins, unless one is given."""
    if {one.partition("=")[0] for one in options} & CONFIG_DIR or not (kept := _hydra_of_run(overrides)):
        return []
    from omegaconf import OmegaConf

    sources = OmegaConf.load(os.path.join(kept, "hydra.yaml")).hydra.runtime.config_sources
    folders = [source.path for source in sources if source.provider == "command-line"]
    for folder in folders:
        if not os.path.isdir(folder):
            raise ConfigError(f"run: its --config-dir {folder} does not exist: give --config-dir again")
    return [f"--config-dir={folder}" for folder in folders]
