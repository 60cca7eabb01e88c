"""Columns of a row that no field takes: an error if they look like a part of the prompt, else listed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from herl.errors import DataError

PROMPT_WORDS = frozenset(
    """
    prompt prompts message messages conversation conversations dialog dialogue dialogues history
    chat turns instruction instructions question questions query queries problem request input inputs
    context contexts scenario premise hypothesis examples shot shots text content body table user
    system persona background passage passages paragraph paragraphs document
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
"""Last words in the names of columns that say something about a prompt: "question_source", "prompt_id"."""
COUNT_WORDS = frozenset({"num", "n", "number", "count", "total", "has", "is"})
"""First words in the names of such columns: "num_turns"."""


RUBRICS = frozenset({"rubric", "rubrics", "Rubrics", "rubric_items", "checklist"})
"""Columns that are a rubric."""


def like_a_prompt(column: str) -> bool:
    """Returns whether a column's name suggests that it is a part of the prompt."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", spaced) if word]
    about = words and (words[-1] in ABOUT_WORDS or words[0] in COUNT_WORDS)
    return bool(PROMPT_WORDS.intersection(words)) and not about


def check_unused(
    row: Mapping[str, Any], unused: Iterable[str], messages: Iterable[Mapping[str, Any]]
) -> None:
    """Checks that a row's unused columns hold nothing that the prompt or the rubric should.

    A column whose text already stands in the prompt is fine. Objects in a column are looked into once.

    Args:
        row: The row.
        unused: Its columns that no field takes.
        messages: The prompt that was read from the row.

    Raises:
        DataError: a column looks like a part of the prompt, or is a rubric.
    """
    contents = [str(message["content"]) for message in messages]
    for column in unused:
        if column in RUBRICS:
            raise DataError(
                f"{column}: expected one rubric, got this column beside the one that the row's format has. "
                f"Drop it by name (data.train.ignore=[{column}]), or map all fields (data.train.fields=...)"
            )
        cell = row[column]
        inner = cell if isinstance(cell, Mapping) else {}
        parts = [(column, cell), *((f"{column}.{name}", part) for name, part in inner.items())]
        for name, part in parts:
            if like_a_prompt(name.rpartition(".")[2]) and not all(
                _stands_in(t, contents) for t in _texts(part)
            ):
                raise DataError(
                    f"{name}: expected a column that the prompt does not need, got {ascii(part)[:80]}, which "
                    "looks like a part of it. Join it to the prompt in the data, drop it by name "
                    f"(data.train.ignore=[{column}]), or map all fields (data.train.fields=...)"
                )


def _stands_in(text: str, contents: Iterable[str]) -> bool:
    """Whether a text is a message, or a part of one that is too long to be there by accident."""
    word = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
    return any(text == content.strip() or (len(text) >= 8 and word.search(content)) for content in contents)


def _texts(cell: Any) -> list[str]:
    """The texts in a cell; those of messages without their roles."""
    if isinstance(cell, Mapping):
        return [t for name, part in cell.items() if name not in ("role", "from") for t in _texts(part)]
    if isinstance(cell, list | tuple):
        return [text for part in cell for text in _texts(part)]
    text = cell.strip() if isinstance(cell, str) else ""
    return [text] if text else []
