"""Refuses settings that hold a key or a password, before anything is printed or written to a run's folder.

A key belongs into an environment variable, and the setting that ends in `_env` names it. No message repeats
what was given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from herl.errors import ConfigError, check_variable_name

ADDRESSES = ("base_url", "urls")
"""Settings that hold the address of a server, to which a key can be sent in another way."""
_NAMED = re.compile(rf"([A-Za-z_][\w.@/]*_env|(?:[\w.@/]*\.)?(?:{'|'.join(ADDRESSES)}))['\"]?\s*[:=]")
"""A setting, or one inside of a mapping."""


def check_typed(overrides: Iterable[str]) -> None:
    """Checks overrides as they are typed.

    Raises:
        ConfigError: names the first setting that holds a key.
    """
    for override in overrides:
        for found in _NAMED.finditer(override):
            for value in _values(override[found.end() :].lstrip(), "{" in override[: found.start()]):
                _check(found[1], value.strip(" '\""))


def _values(rest: str, inside: bool) -> list[str]:
    """The values at the beginning of a text: of a list, of a sweep, or the one of a setting in a mapping."""
    if rest[:1] in ("'", '"'):
        return [rest[1:].partition(rest[0])[0]]
    if rest[:1] == "[":
        return rest[1:].partition("]")[0].split(",")
    return [re.split("[,}]", rest)[0]] if inside else rest.split(",")


def check_composed(config: DictConfig) -> None:
    """Checks the settings of a composed configuration, without following interpolations.

    Raises:
        ConfigError: names the first setting that holds a key.
    """
    for key, value in _texts("", OmegaConf.to_container(config, resolve=False)):
        _check(key, value)


def _check(key: str, value: str) -> None:
    if "${" in value or value in ("", "null", "None", "???"):
        return
    name = re.sub(r"\.\d+$", "", key).rpartition(".")[2]
    if name.endswith("_env"):
        check_variable_name(key, value)
    elif name in ADDRESSES and _has_password(value):
        raise ConfigError(
            f"{key}: expected a URL without user, password and query, got another. Put the key into an "
            "environment variable, and name that variable in api_key_env beside it"
        )


def _has_password(url: str) -> bool:
    try:
        return "@" in urlsplit(url).netloc or bool(urlsplit(url).query)
    except ValueError:
        return "@" in url


def _texts(key: str, node: Any) -> Iterator[tuple[str, str]]:
    """Yields all texts in a configuration with their keys, but those about Hydra itself."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, Mapping):
        for name, child in node.items():
            if key or name != "hydra":
                yield from _texts(f"{key}.{name}" if key else str(name), child)
    elif isinstance(node, list):
        for place, child in enumerate(node):
            yield from _texts(f"{key}.{place}", child)
