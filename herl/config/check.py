"""Checks a composed configuration before anything is built from it.

Every key of a node with `_target_` must be an argument of that target, and every value must have the type in
the target's signature. herl's own components and a user's go through the same check, so there is no list of
keys to maintain.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter
from pydantic import ValidationError as PydanticValidationError
from pydantic_core import SchemaError

from herl.config import conf_dir as conf_dir
from herl.config.type_names import described
from herl.errors import ConfigError, did_you_mean
from herl.targets import configured

HYDRA_KEYS = {"_target_": str, "_partial_": bool, "_recursive_": bool, "_convert_": str, "_args_": list}


def check(config: DictConfig) -> None:
    """Checks every node with a `_target_`.

    Raises:
        ConfigError: lists every mistake with its key, the expected value and the given one.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise without_value(error) from error
    assert isinstance(plain, dict)
    problems = [
        problem for key, value in plain.items() for problem in _node_problems(str(key), value, config)
    ]
    # A node that interpolates another repeats its mistakes: each is reported once.
    if found := list(dict.fromkeys(p for p in problems if not _repeats(p, problems))):
        raise ConfigError(mistakes(found))


def without_value(error: OmegaConfBaseException) -> ConfigError:
    """Returns what to say of a key whose value, or that of the key it refers to, is missing."""
    key = getattr(error, "full_key", None) or "configuration"
    reason = str(error).splitlines()[0].removeprefix("MissingMandatoryValue while resolving interpolation: ")
    return ConfigError(f"{key}: expected a value, got none ({reason})")


def _repeats(problem: str, problems: Sequence[str]) -> bool:
    """Whether a problem is another one under a longer key, such as module.advantages.emphasis.rate."""
    key, colon, message = problem.partition(": ")
    names = key.split(".")
    return any(".".join(names[start:]) + colon + message in problems for start in range(1, len(names)))


def mistakes(found: Sequence[str]) -> str:
    """Returns a message that lists all mistakes."""
    return found[0] if len(found) == 1 else f"{len(found)} mistakes:" + "".join(f"\n  {one}" for one in found)


def known_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yields all dotted keys of a configuration, without following interpolations."""
    for name in map(str, config):
        yield f"{prefix}{name}"
        opaque = OmegaConf.is_interpolation(config, name) or OmegaConf.is_missing(config, name)
        if not opaque and isinstance(config[name], DictConfig):
            yield from known_keys(config[name], f"{prefix}{name}.")


def _node_problems(key: str, value: Any, config: DictConfig) -> Iterator[str]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield from _target_problems(key, value, config)
        for name, child in value.items():
            yield from _node_problems(f"{key}.{name}", child, config)
    elif isinstance(value, list):
        for place, child in enumerate(value):
            yield from _node_problems(f"{key}.{place}", child, config)


def _target_problems(key: str, node: Mapping[str, Any], config: DictConfig) -> Iterator[str]:
    for name, kind in HYDRA_KEYS.items():
        if name in node and not isinstance(node[name], kind):
            shown = written(config, f"{key}.{name}", node[name])
            yield f"{key}.{name}: expected {described(kind)}, got {shown!r}"
    try:
        target = configured(f"{key}._target_", node["_target_"])
    except ConfigError as error:
        yield str(error)
        return
    parameters = inspect.signature(target).parameters
    given = {str(name): value for name, value in node.items() if name not in HYDRA_KEYS}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in given:
        if name not in parameters and not takes_any:
            hint = did_you_mean(name, parameters)
            yield f"{key}.{name}: unknown key; expected one of {', '.join(parameters)}.{hint}"
    if not node.get("_partial_"):
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in parameters.items():
            required = parameter.default is inspect.Parameter.empty and parameter.kind in named
            if required and name not in given:
                yield f"{key}.{name}: expected a value, got none"
    hints = _hints(target)
    for name in (name for name in given if name in hints):
        try:
            shown = written(config, f"{key}.{name}", given[name])
            check_value(f"{key}.{name}", given[name], hints[name], shown)
        except ConfigError as error:
            yield str(error)


def written(config: DictConfig, key: str, value: Any) -> Any:
    """Returns a value as the configuration has it, for messages: an interpolation may stand for a secret."""
    parent, _, name = key.rpartition(".")
    with suppress(OmegaConfBaseException, LookupError, ValueError):
        node = OmegaConf.select(config, parent) if parent else config
        plain: Any = OmegaConf.to_container(node, resolve=False)
        found = plain[int(name)] if isinstance(plain, list) else plain[name]
        return found if "${" in str(found) else value
    return value


def check_value(key: str, value: Any, hint: Any, shown: Any = None) -> None:
    """Checks a value of a configuration by a type.

    Args:
        key: Its key.
        value: The value.
        hint: The type.
        shown: What messages show instead of the value; None for the value itself.

    Raises:
        ConfigError: names the key, what the type expects and the value.
    """
    shown = value if shown is None else shown
    if isinstance(value, Mapping) and "_target_" in value:
        made = configured(f"{key}._target_", value["_target_"])
        wanted = tuple(h for h in (hint, *typing.get_args(hint)) if inspect.isclass(h)) or (object,)
        if inspect.isclass(made) and not value.get("_partial_") and not issubclass(made, wanted):
            names = " or ".join(h.__name__ for h in wanted if h is not type(None))
            raise ConfigError(f"{key}: expected a {names}, got {value['_target_']}")
        return
    if holds_target(value):
        return
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticSchemaGenerationError, PydanticUserError):
        adapter = TypeAdapter(hint)  # a dataclass or model, which brings its own pydantic config
    except SchemaError as error:  # a protocol, which no plain YAML value can satisfy
        raise ConfigError(f"{key}: expected {described(hint)}, got {shown!r}") from error
    try:
        made = adapter.validate_python(value)
    except PydanticValidationError as error:
        raise ConfigError(f"{key}: expected {described(hint)}, got {shown!r}{_detail(error)}") from error
    if isinstance(value, Mapping) and not isinstance(made, Mapping):  # a record that would stay a mapping
        raise ConfigError(f"{key}: expected {described(hint)} with its _target_, got {shown!r}")
    if isinstance(value, str) and isinstance(made, bool | int | float):
        raise ConfigError(f"{key}: expected {described(hint)}, got the text {shown!r}")


def _hints(target: Any) -> dict[str, Any]:
    """Returns the types of a target's arguments, or nothing if they exist for type checkers only. The type
    that a function returns is not looked at: it may be heavy to import."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        if not inspect.isfunction(function):
            return typing.get_type_hints(function)
        arguments = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
        return typing.get_type_hints(
            SimpleNamespace(__annotations__=arguments), inspect.unwrap(function).__globals__
        )
    except NameError:
        return {}


def holds_target(value: Any) -> bool:
    """Returns whether a value describes an object, or has one inside."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(holds_target, value.values()))
    return isinstance(value, list) and any(map(holds_target, value))


def _detail(error: PydanticValidationError) -> str:
    """Returns pydantic's message in parentheses, unless it only repeats which type was expected."""
    first = error.errors()[0]
    repeats = first["type"] == "literal_error" or first["type"].endswith(("_type", "_parsing"))
    return "" if repeats and not isinstance(first["input"], Mapping | list) else f" ({first['msg']})"
