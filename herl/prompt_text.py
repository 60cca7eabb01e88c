"""Prompts as text files with {fields}, filled in one pass, so braces in a model's text stay text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from importlib.resources import files

from herl.errors import ConfigError

_FIELD = re.compile(r"\{(\w+)\}")


def load(package: str, name: str) -> str:
    """Returns the text of a prompt shipped beside its class."""
    return files(package).joinpath(name).read_text(encoding="utf-8").strip()


def check(key: str, template: str, fields: Set[str], optional: Set[str] = frozenset()) -> None:
    """Checks that a template has all of `fields`, and no others than the optional ones.

    Raises:
        ConfigError: names the key.
    """
    got = set(_FIELD.findall(template))
    if got - optional != fields:
        more = f" and optionally {', '.join(sorted(optional))}" if optional else ""
        raise ConfigError(
            f"{key}: expected the fields {', '.join(sorted(fields))}{more}; "
            f"got {', '.join(sorted(got)) or 'no fields'}"
        )


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Returns the template with each {field} replaced, in one pass: inserted text is not filled again."""
    return _FIELD.sub(lambda match: fields[match.group(1)], template)
