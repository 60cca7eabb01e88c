"""JSON in answers, and the JSON schemas that checks hold them to.

JSON means RFC 8259 with unique keys (RFC 7493): not NaN, not Infinity, no key twice in one object. It may
stand in one code fence.

Schemas come from the data, so they open no connections and no files: `$ref` finds only what stands in the
schema itself. They have the time limit of `herl.checks.patterns`, as a whole and for each pattern. `$schema`
is ignored: with it, jsonschema would choose validators that have no limits.
"""

from __future__ import annotations

import difflib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

import jsonschema
import referencing
import referencing.jsonschema
import regex

from herl.checks import patterns
from herl.checks.broken import BrokenByAnswerError, TooSlowError

_HOLDS_DATA = {"const", "enum", "default", "examples"}
"""Keywords whose values are data and no schemas."""
_HOLDS_SCHEMAS = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}
"""Keywords whose values are schemas by name."""


class _NotJSONError(ValueError):
    """Python's reader accepts it, but it is no JSON."""


def is_json(answer: str, schema: Mapping[str, Any] | None) -> bool:
    """Whether the answer is JSON, alone or in one code fence, and fits the schema if there is one.

    Raises:
        BrokenByAnswerError: it is nested too deep, or has numbers that cannot be computed with.
        TooSlowError: the schema, or a pattern in it, took too long.
    """
    try:
        found = json.loads(_unfenced(answer), parse_constant=_no_constant, object_pairs_hook=_unique)
    except (json.JSONDecodeError, _NotJSONError):
        return False
    except (RecursionError, ValueError) as error:  # ValueError: more digits than Python converts
        raise BrokenByAnswerError(f"its JSON cannot be read ({type(error).__name__})") from error
    if schema is None:
        return True
    try:
        return _fits(found, schema)
    except (BrokenByAnswerError, TooSlowError, referencing.exceptions.Unresolvable, regex.error, MemoryError):
        raise
    except Exception as error:  # the schema is sound, so the answer's values made it fail
        raise BrokenByAnswerError(
            f"its JSON cannot be compared with the schema ({type(error).__name__})"
        ) from error


def check_schema(schema: Mapping[str, Any]) -> None:
    """Checks all that can be checked without an answer.

    Raises:
        ValueError: says what is wrong with the schema.
    """
    try:
        jsonschema.Draft202012Validator.check_schema(schema, format_checker=jsonschema.FormatChecker(()))
    except jsonschema.SchemaError as error:
        raise ValueError(
            f"{'.'.join(map(str, error.absolute_path))}: {error.message}".lstrip(": ")
        ) from error
    keys = list(_keywords(schema))
    names = {key for key, _ in keys}
    if {"patternProperties", "unevaluatedProperties"} <= names:
        raise ValueError("unevaluatedProperties does not work together with patternProperties")
    for pattern in schema_patterns(schema):
        try:
            patterns.compiled(pattern)
        except regex.error as error:
            raise ValueError(f"the pattern {pattern!r} cannot be read: {error}") from error
    for key, _ in keys:
        if key not in _KEYWORDS and (near := difflib.get_close_matches(key, _KEYWORDS, n=1, cutoff=0.8)):
            raise ValueError(f"unknown keyword '{key}'. Did you mean '{near[0]}'?")
    _check_references(schema)
    value: Any
    for value in (None, {}, [], 0, ""):
        try:
            _fits(value, schema)
        except TooSlowError as error:
            raise ValueError(
                f"it takes longer than {patterns.SECONDS:g} s, whatever the answer is"
            ) from error
        except Exception as error:
            raise ValueError(f"it cannot be applied ({type(error).__name__})") from error


def schema_patterns(schema: Any) -> list[str]:
    """Returns the patterns in a schema and its parts."""
    named = [
        pattern
        for key, value in _keywords(schema)
        for pattern in ([value] if key == "pattern" else value if key == "patternProperties" else ())
    ]
    return [pattern for pattern in named if isinstance(pattern, str)]


def _check_references(schema: Mapping[str, Any]) -> None:
    """Raises a ValueError if the schema refers to anything that does not stand in it."""

    def check(part: referencing.Resource[Any], resolver: Any) -> None:
        for key in ("$ref", "$dynamicRef"):
            reference = part.contents.get(key) if isinstance(part.contents, Mapping) else None
            if isinstance(reference, str):
                try:
                    resolver.lookup(reference)
                except Exception as error:  # it may also be no URI at all
                    told = f"{key}: {reference!r} is not in the schema. Nothing else is read or fetched"
                    raise ValueError(told) from error
        for inner in part.subresources():
            check(inner, resolver.in_subresource(inner))

    whole = referencing.Resource.from_contents(
        _without_dialects(schema), default_specification=referencing.jsonschema.DRAFT202012
    )
    check(whole, referencing.Registry().resolver_with_root(whole))


def _without_dialects(schema: Any) -> Any:
    """Returns a schema without `$schema`, also in its parts."""
    if isinstance(schema, list):
        return [_without_dialects(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: value if key in _HOLDS_DATA
        else {name: _without_dialects(part) for name, part in value.items()}
        if key in _HOLDS_SCHEMAS and isinstance(value, Mapping)
        else _without_dialects(value)
        for key, value in schema.items()
        if key != "$schema"
    }  # fmt: skip


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every keyword and its value, of the schema and its parts."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            yield key, value
            if key in _HOLDS_SCHEMAS and isinstance(value, Mapping):
                yield from _keywords(list(value.values()))
            elif key not in _HOLDS_DATA:
                yield from _keywords(value)
    elif isinstance(schema, list):
        for part in schema:
            yield from _keywords(part)


def _unfenced(answer: str) -> str:
    text = answer.strip()
    if text.startswith("```") and text.endswith("```"):
        first, newline, rest = text[:-3].partition("\n")
        if newline and first[3:].strip().lower() in ("", "json") and rest.rpartition("\n")[2].strip() == "":
            return rest
    return text


def _no_constant(name: str) -> None:
    raise _NotJSONError(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _NotJSONError("a key stands twice in one object")
    return found


# Keywords of jsonschema that match patterns (with a time limit), divide (exactly) or compare all items


def _pattern(
    validator: Any, pattern: str, instance: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    if isinstance(instance, str) and not patterns.found(pattern, instance):
        yield jsonschema.ValidationError("it does not match the pattern")


def _pattern_properties(
    validator: Any, properties: Mapping[str, Any], instance: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    if isinstance(instance, dict):
        for pattern, part in properties.items():
            for name, value in instance.items():
                if patterns.found(pattern, name):
                    yield from validator.descend(value, part, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: Any, instance: Any, schema: Mapping[str, Any]
) -> Iterator[jsonschema.ValidationError]:
    if isinstance(instance, dict):
        known, matching = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, value in instance.items():
            if name not in known and not any(patterns.found(pattern, name) for pattern in matching):
                yield from validator.descend(value, allowed, path=name)


def _multiple_of(
    validator: Any, divisor: float, instance: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    """In decimal fractions: in binary ones, 19.99 is no multiple of 0.01."""
    if isinstance(instance, int | float) and not isinstance(instance, bool):
        if not math.isfinite(instance):
            raise BrokenByAnswerError("its JSON has a number too large to compute with")
        if Fraction(str(instance)) % Fraction(str(divisor)):
            yield jsonschema.ValidationError("it is not a multiple")


def _unique_items(
    validator: Any, unique: bool, instance: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    """In linear time; jsonschema compares all pairs."""
    if unique and isinstance(instance, list) and len(set(map(comparable, instance))) < len(instance):
        yield jsonschema.ValidationError("an item occurs twice")


def comparable(value: Any) -> Any:
    """Returns what is equal, and hashed alike, for equal JSON values: 1 is 1.0, but not true."""
    if isinstance(value, dict):
        return frozenset((name, comparable(part)) for name, part in value.items())
    if isinstance(value, list):
        return tuple(map(comparable, value))
    return (bool, value) if isinstance(value, bool) else value


_limit = threading.local()
"""When this thread's comparison with a schema ends, in seconds of the thread's computing time."""


def _timed(keyword: Callable[..., Iterator[Any] | None]) -> Callable[..., Iterator[Any]]:
    """Ends the comparison at its limit. All work that can grow exponentially goes through keywords."""

    def timed(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if time.thread_time() > _limit.end:
            raise TooSlowError(f"its schema took longer than {patterns.SECONDS:g} s on this answer")
        yield from keyword(validator, value, instance, schema) or ()

    return timed


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    {
        name: _timed(keyword)
        for name, keyword in {
            **jsonschema.Draft202012Validator.VALIDATORS,
            "pattern": _pattern,
            "patternProperties": _pattern_properties,
            "additionalProperties": _additional_properties,
            "multipleOf": _multiple_of,
            "uniqueItems": _unique_items,
        }.items()
    },
)


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    validator = _validator(json.dumps(schema))
    _limit.end = time.thread_time() + patterns.SECONDS
    return bool(validator.is_valid(value))


_KEYWORDS = {*_Validator.VALIDATORS, *_HOLDS_DATA, *_HOLDS_SCHEMAS} | {
    "title", "description", "format", "then", "else", "minContains", "maxContains", "deprecated", "readOnly",
    "writeOnly", "contentEncoding", "contentMediaType", "contentSchema", "$schema", "$id", "$anchor",
    "$dynamicAnchor", "$comment", "$vocabulary",
}  # fmt: skip
"""Keywords of JSON Schema. Others are allowed, as notes, unless they look like one of these mistyped."""


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    """The validator of a schema. It looks up no references outside, since data must not open connections."""
    return _Validator(_without_dialects(json.loads(schema)), registry=referencing.Registry())
