"""Converts the arguments of a verb to Hydra's, with the overrides that run= carries over."""

from __future__ import annotations

import re

from herl.cli.past_overrides import carried_over, config_dirs, hydra_of_run, key_of, past_overrides
from herl.cli.prose import in_quotes, quoted, quoted_path
from herl.config.aliases import CommandLine, choices, translated
from herl.config.keys_in_settings import check_typed
from herl.display.terminal import say
from herl.distributed import is_first_process
from herl.errors import ConfigError

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
    sweeps = bool({one.partition("=")[0] for one in options} & SWEEPS)
    if not sweeps:
        overrides = [quoted_path(one) for one in overrides]
    if verb in POSITIONAL:
        return [*options, *overrides]
    if verb == "improve":
        overrides = [quoted(one) for one in overrides]
    past = past_overrides(overrides)
    check_typed([*past, *overrides])
    options = [*_options_of_run(options, overrides), *options]
    names = {one.partition("=")[0] for one in options}
    chosen = choices([*past, *overrides])
    line = CommandLine(
        verb=verb,
        choices=chosen,
        sweeps=sweeps,
        own_experiment=bool(names & CONFIG_DIR) and "experiment" in chosen,
    )
    overrides, lines = translated(overrides, line)
    _say(lines)
    if verb in ("test", "improve"):
        _check_benchmark(overrides)
    return [
        *options,
        *carried_over(past, overrides),
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
            folders.append(in_quotes(word))
        else:
            overrides.append(word)
    if folders:
        listed = f"[{','.join(folders)}]" if verb == "compare" else folders[-1]
        overrides.insert(place, f"{POSITIONAL[verb]}={listed}")
    if options and options[-1] in INFO:
        options[-1] = "--info=all"  # otherwise it would consume the first override
    return options, overrides


def _check_benchmark(overrides: list[str]) -> None:
    """Rejects overrides that would have no effect with benchmark=."""
    given = {key_of(one): one.partition("=")[2].strip("'\"") for one in overrides}
    chosen = given.get("benchmark", "")
    if chosen in ("", "none", "null") or "," in chosen or "prompt" in given:
        return
    for override in overrides:
        if "@benchmark." in key_of(override):  # a group's choice for the benchmark's own part
            continue
        for key, instead in BENCHMARK_KEYS.items():
            if re.match(rf"{re.escape(key)}($|[./@])", key_of(override)):
                raise ConfigError(
                    f"{override}: no effect with benchmark={chosen}, which brings its own: set {instead}"
                )


def _options_of_run(options: list[str], overrides: list[str]) -> list[str]:
    """The --config-dir that a run was started with for its plug-ins, unless one is given."""
    if {one.partition("=")[0] for one in options} & CONFIG_DIR or not (kept := hydra_of_run(overrides)):
        return []
    return [f"--config-dir={folder}" for folder in config_dirs(kept)]
