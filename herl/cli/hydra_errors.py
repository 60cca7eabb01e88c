"""Says why Hydra rejected a configuration: in its words, or in one line that says the same and more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from herl.display.terminal import say
from herl.errors import did_you_mean
from herl.report.secret import redacted

ADVICE = ("To append", "Key '", "    full_key", "    object_type", "Set the environment variable")
"""Starts of lines about Hydra's own syntax."""
SWEEP = {"-m", "--multirun"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """What is wrong with an override."""

    about: str
    """The key or group."""
    text: str


def explain(verb: str, said: str, arguments: Sequence[str]) -> None:
    """Prints why Hydra rejected the configuration, and the key or group that was probably meant.

    Args:
        verb: The verb.
        said: What Hydra printed. It is left out if one of our lines says the same.
        arguments: Options and overrides, as Hydra got them.
    """
    found = list(_mistakes(verb, arguments))
    same = {f"Could not override '{one.about}'" for one in found}
    same |= {f"Could not find '{one.about}/" for one in found}
    if not any(words in said for words in same):
        lines = [line for line in said.splitlines() if line.strip() and not line.startswith(ADVICE)]
        say(redacted("\n".join(lines)), stderr=True)
    for one in found:
        say(f"herl: error: {redacted(one.text)}", stderr=True)


def _mistakes(verb: str, arguments: Sequence[str]) -> Iterator[Mistake]:
    folders = _folders(arguments)
    if not folders:
        return
    groups = _groups(folders)
    overrides = [one for one in arguments if "=" in one and not one.startswith(("-", "hydra"))]
    sweeps = bool(SWEEP & set(arguments))
    given = [
        (key, _values(value, sweeps))
        for key, _, value in (one.partition("=") for one in overrides)
        if not key.startswith(("+", "~"))
    ]
    wrong: set[str] = set()
    for key, values in given:
        for value in values if key in groups else ():
            if value not in groups[key]:
                wrong.add(key)
                expected = ", ".join(sorted(groups[key]))
                hint = did_you_mean(value, groups[key])
                yield Mistake(about=key, text=f"{key}: expected one of {expected}, got '{value}'.{hint}")
    chosen = [f"{key}={values[0]}" for key, values in given if key in groups and values and key not in wrong]
    known = _known(verb, chosen, folders)
    for key, _ in given if known else ():
        if key not in known and key not in groups:
            yield Mistake(about=key, text=f"unknown key '{key}'.{did_you_mean(key, [*groups, *known])}")


def _known(verb: str, chosen: list[str], folders: Sequence[Path]) -> list[str]:
    """All keys of the configuration; none if the choices conflict, which Hydra has reported."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    from herl.cli.prose import in_quotes
    from herl.config.check import conf_dir, known_keys

    paths = ",".join(in_quotes(str(folder)) for folder in folders[1:])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), suppress(HydraException):
        composed = compose(verb, [*chosen, f"hydra.searchpath=[{paths}]"], return_hydra_config=False)
        return list(known_keys(composed))
    return []


def _values(value: str, sweeps: bool) -> list[str]:
    """The choices that an override names; none where this cannot be said without Hydra's grammar."""
    if value in ("", "null") or re.search(r"[^\w.,/-]", value) or ("," in value and not sweeps):
        return []
    return value.split(",")


def _folders(arguments: Sequence[str]) -> list[Path]:
    """The folders of configuration files: herl's, the one of --config-dir, and those of hydra.searchpath;
    none if one of them cannot be found, since its choices are unknown then."""
    from herl.config.check import conf_dir

    named: list[str] = []
    for place, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option in ("-cd", "--config-dir"):
            named += [value] if equals else list(arguments[place + 1 : place + 2])
        elif option.lstrip("+") == "hydra.searchpath":
            named += [part.strip(" '\"") for part in value.strip("[]").split(",")]
    found = [conf_dir()]
    for name in named:
        places = [Path(name.removeprefix("file://")).absolute()]
        if name.startswith("pkg://"):
            places = []
            with suppress(ImportError, ValueError):
                spec = find_spec(name.removeprefix("pkg://"))
                places = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
        if not places or not all(place.is_dir() for place in places):
            return []
        found += places
    return found


def _groups(folders: Sequence[Path]) -> dict[str, set[str]]:
    """The choices of each group."""
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            group = path.relative_to(folder).parent.as_posix()
            if group != ".":
                groups.setdefault(group, set()).add(path.stem)
    return groups
