"""The cells of a row -> plain values: nulls are dropped, JSON in text columns is decoded."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from herl.errors import DataError

OWN = ("meta",)
"""Fields whose nulls are the user's own."""
OWN_IN_JSON = ("meta", "schema")
"""The same in JSON, where only the user writes nulls: a JSON schema may ask for one."""


def present(value: Any, own: Collection[str]) -> Any:
    """Returns a value without the fields that are null, at any depth. Arrow fills missing fields with nulls.

    Entries of lists keep their places: IFEval's `kwargs` has one entry for each instruction.

    Args:
        value: A cell, or a whole row.
        own: Names of the fields that are left unchanged.
    """
    if isinstance(value, Mapping):
        return {
            name: cell if name in own else present(cell, own)
            for name, cell in value.items()
            if cell is not None
        }
    return [present(cell, own) for cell in value] if isinstance(value, list) else value


def decoded(cell: Any, *, is_text: bool) -> Any:
    """Decodes a list or an object stored as JSON in a text column.

    Args:
        cell: The cell.
        is_text: Whether the column holds a prompt or an answer. It stays text unless it is a chat.
    """
    if not isinstance(cell, str) or cell.lstrip()[:1] not in ("[", "{"):
        return cell
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    if is_text and not (isinstance(found, list) and all(isinstance(m, dict) and "role" in m for m in found)):
        return cell
    return present(found, OWN_IN_JSON)


def check_unicode(value: Any, field: str = "") -> None:
    """Checks that every text can be encoded. JSON can spell half a surrogate pair, which no encoding has.

    Raises:
        DataError: names the field and the character.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = ascii(value[error.start])
            raise DataError(
                f"{field}: expected Unicode text, got the lone surrogate {half} "
                f"at character {error.start + 1}"
            ) from error
    elif isinstance(value, Mapping):
        for name, cell in value.items():
            check_unicode(name, f"{field}.{name!a}".lstrip("."))
            check_unicode(cell, f"{field}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for place, cell in enumerate(value):
            check_unicode(cell, f"{field}.{place}".lstrip("."))
