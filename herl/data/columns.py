"""Columns of a row that no field takes: an error if they look like a part of the prompt, else listed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from herl.errors import DataError

PROMPT_WORDS = frozenset(
    """
    prompt prompts message messages conversation conversations dialog dialogue dialogues history
    turns instruction instructions question questions query queries problem request input inputs
    context contexts system persona background passage passages paragraph paragraphs document
    documents article story evidence choices options image images picture audio video tool tools
    function functions
    """.split()  # noqa: SIM905 (a table of words)
)
"""Words in the names of columns that are a part of a prompt in public data sets."""
ABOUT_WORDS = frozenset(
    """
    id ids idx index key source sources type types kind category categories tag tags topic domain
    label level difficulty count counts num number length len tokens hash md5 sha256 url link name
    lang language score date time timestamp version split rating quality
    """.split()  # noqa: SIM905 (a table of words)
)
"""Words in the names of columns that say something about a prompt: "question_source", "prompt_id"."""


def like_a_prompt(column: str) -> bool:
    """Returns whether a column's name suggests that it is a part of the prompt."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower()
    words = {word for word in re.split(r"[^a-z0-9]+", spaced) if word}
    return bool(words & PROMPT_WORDS) and not words & ABOUT_WORDS


def check_unused(
    row: Mapping[str, Any], unused: Iterable[str], messages: Iterable[Mapping[str, Any]]
) -> None:
    """Checks that a row's unused columns hold nothing that the prompt should.

    A column whose text already stands in the prompt is fine.

    Args:
        row: The row.
        unused: Its columns that no field takes.
        messages: The prompt that was read from the row.

    Raises:
        DataError: a column looks like a part of the prompt.
    """
    prompt = "\n".join(str(message["content"]) for message in messages)
    for column in unused:
        if like_a_prompt(column) and not all(text in prompt for text in _texts(row[column])):
            raise DataError(
                f"{column}: expected a column that the prompt does not need, got {ascii(row[column])[:80]}, "
                "which looks like a part of it. Name it in `fields` (data.train.fields={prompt: "
                f"{column}}}), join it to the prompt, or drop it by name (data.train.ignore=[{column}])"
            )


def _texts(cell: Any) -> list[str]:
    """The texts in a cell; those of messages without their roles."""
    if isinstance(cell, Mapping):
        return [t for name, part in cell.items() if name not in ("role", "from") for t in _texts(part)]
    if isinstance(cell, list | tuple):
        return [text for part in cell for text in _texts(part)]
    if cell is None or cell is False:
        return []
    return [text] if (text := str(cell).strip()) else []
