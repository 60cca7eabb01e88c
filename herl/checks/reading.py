"""A check as it stands in the data -> a typed one, or an error in the user's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from herl.checks.kinds import KINDS, Check
from herl.errors import DataError, did_you_mean

FOREIGN = "x-"
"""Kinds that begin with this belong to a judge of the user's."""


def without_nulls(value: Any) -> Any:
    """Returns a check without the keys whose value is null: Parquet fills up all rows to the same keys.

    A JSON schema is left unchanged, because nulls mean something in it.
    """
    if isinstance(value, Mapping):
        return {
            key: part if key == "schema" else without_nulls(part)
            for key, part in value.items()
            if part is not None
        }
    if isinstance(value, list):
        return [without_nulls(part) for part in value]
    return value


def read_check(value: Any, where: str = "check") -> Check | None:
    """Returns the typed check, or None if a judge of the user's reads this kind.

    Args:
        value: The mapping in the data, without nulls.
        where: Path of the field, for messages.

    Raises:
        DataError: names the field, what was expected there, and what was got.
    """
    if not isinstance(value, Mapping):
        example = '{"kind": "contains", "text": "fish"}'
        raise DataError(f"{where}: expected a mapping such as {example}, got {shown(value)}")
    kind = value.get("kind")
    if isinstance(kind, str) and kind.startswith(FOREIGN):
        return None
    if not isinstance(kind, str) or kind not in KINDS:
        got = shown(kind) if "kind" in value else "nothing"
        raise DataError(
            f"{where}.kind: expected one of {', '.join(KINDS)}, got {got}.{did_you_mean(str(kind), KINDS)} "
            f"The name of a kind that a judge of your own reads must begin with '{FOREIGN}'."
        )
    rest = {str(key): part for key, part in value.items() if key != "kind"}
    try:
        return KINDS[kind].model_validate(rest)
    except ValidationError as error:
        # an unknown key first: it is probably the misspelled name of one that is missing
        found = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden" or len(e["loc"]) > 1)
        errors = [e for e in found if e["loc"][:1] == found[0]["loc"][:1]]
        deepest = max(errors, key=lambda e: len(e["loc"]))  # of a union, the branch that came nearest
        raise DataError(_explained(deepest, kind, where)) from error


def shown(value: Any) -> str:
    """Returns a value of the data as words: "the text 'fish'", "the number 3", "a list"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {_short(repr(value))}" if value else "an empty text"
    if isinstance(value, int | float):
        return f"the number {value}" if abs(value) < 1e300 or isinstance(value, float) else "a huge number"
    if isinstance(value, list | tuple | Mapping):
        name = "mapping" if isinstance(value, Mapping) else "list"
        return f"the {name} {_short(json.dumps(value, default=str))}" if value else f"an empty {name}"
    return f"a value of the type {type(value).__name__}"


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _explained(first: ErrorDetails, kind: str, where: str) -> str:
    """A complaint of pydantic as field, expected and got."""
    fields = {field.alias or name: field for name, field in KINDS[kind].model_fields.items()}
    place = [str(step) for step in first["loc"] if not _names_a_branch(step)]
    name = ".".join([where, *place])
    words = str(first["ctx"]["error"]) if "ctx" in first and "error" in first["ctx"] else ""
    if not place:
        return f"{where}: {words}"
    if first["type"] == "extra_forbidden" and place[0] == "of":
        return f"{name}: expected the one key 'regex'"
    if first["type"] == "extra_forbidden":
        keys = ", ".join(fields)
        return f"{name}: a check of the kind '{kind}' has the keys {keys}.{did_you_mean(place[0], fields)}"
    inner = {"texts": "a text that is not empty", "of": "a pattern", "ignore_patterns": "a pattern"}
    expected = inner[place[0]] if len(place) > 1 and place[0] in inner else fields[place[0]].description
    got = "nothing" if first["type"] == "missing" else shown(first["input"])
    return f"{name}: expected {expected}, got {got}" + (f": {words}" if words else "")


def _names_a_branch(step: int | str) -> bool:
    """pydantic puts the branches of a union among the fields, such as "Matches" or "literal['words',...]"."""
    return isinstance(step, str) and (step[:1].isupper() or "[" in step)
