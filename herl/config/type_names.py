"""Describes types as a user writes their values in YAML, for messages about configurations."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

PLAIN = {
    Any: "a value",
    object: "a value",
    None: "null",
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}
"""Types that one word in YAML can have."""

PLURAL = {int: "whole numbers", float: "numbers", str: "texts"}
"""The same, as items of a list."""


def described(hint: Any) -> str:
    """Returns a type without Python's syntax: "a whole number or null", "one of append, replace_worst"."""
    if hint in PLAIN:
        return PLAIN[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return described(arguments[0])
    if origin in (Union, UnionType, Literal):
        return _choice(hint)
    kind = origin or hint
    if kind is Callable:
        return "a function"
    if not inspect.isclass(kind):
        return "a value of another type"
    if issubclass(kind, Mapping):
        return "a mapping"
    if issubclass(kind, Iterable) and kind.__module__ in ("builtins", "collections.abc"):
        return _list(kind, arguments)
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _choice(hint: Any) -> str:
    options = list(dict.fromkeys(_options(hint)))
    if "a number" in options and "a whole number" in options:
        options.remove("a whole number")
    if len(options) > 2 and not any(" " in option or option == "text" for option in options):
        return f"one of {', '.join(options)}"
    return " or ".join(filter(None, [", ".join(options[:-1]), options[-1]]))


def _options(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [value if isinstance(value, str) else json.dumps(value) for value in get_args(hint)]
    if get_origin(hint) in (Union, UnionType):
        return [option for part in get_args(hint) for option in _options(part)]
    return [described(hint)]


def _list(kind: type, arguments: tuple[Any, ...]) -> str:
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} values: {', '.join(map(described, arguments))}"
    if not arguments or arguments[0] is Any:
        return "a list"
    return f"a list of {PLURAL.get(arguments[0]) or f'values, each {described(arguments[0])}'}"
