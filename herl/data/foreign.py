"""Names and shapes of fields in other data sets, as herl's own names and shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any

from herl.data.cells import decoded
from herl.data.columns import like_a_prompt
from herl.errors import DataError

ALIASES = {
    "prompt": ("question", "instruction", "query", "problem"),
    "messages": ("conversation", "conversations"),
    "rubric": ("rubrics", "Rubrics", "rubric_items", "criteria", "checklist"),
    "reference": ("reference_answer", "ideal_answer"),
    "id": ("prompt_id", "key", "question_id", "sample_id"),
    "source": ("data_source",),
}
"""Names of row fields in other data sets."""
CRITERION_ALIASES = {
    "text": ("description", "criterion", "requirement", "criterion_text", "rubric_item", "Ingredient"),
    "weight": ("points", "score"),
    "title": ("name",),
}
"""Names of criterion fields in other data sets."""
TEXTS = {"prompt", "reference", *ALIASES["prompt"], *ALIASES["reference"]}
_MEANS_MORE = re.compile(
    r"weight|importance|points|score|penalty|negative|positive|polarity|desirable|check|verif|required",
    re.IGNORECASE,
)
_CATEGORY = re.compile(
    r"^\s*(Essential|Important|Optional|Pitfall)(?: Criteria| Criterion)?\s*:\s*", re.IGNORECASE
)


def message(message: Any) -> Any:
    """A message's role and content, also from {"from": "human", "value": ...}.

    Other fields are dropped, unless they hold what a model should read, such as tool calls or images.
    """
    if not isinstance(message, dict):
        return message
    for name, cell in message.items():
        if cell and name not in ("content", "value") and like_a_prompt(name):
            raise DataError(f"messages: expected messages of a role and a text, got '{name}' as well")
    role = message.get("role", message.get("from"))
    role = {"human": "user", "gpt": "assistant"}.get(role, role) if isinstance(role, str) else role
    return {"role": role, "content": message.get("content", message.get("value"))}


def foreign_criterion(criterion: Any, fields: Collection[str]) -> Any:
    """Returns a criterion under the native names, which are given.

    Raises:
        DataError: two of its fields mean the same, or one that none takes may change its meaning.
    """
    if not isinstance(criterion, dict):
        return criterion
    names = {
        name: [key for key in (name, *CRITERION_ALIASES.get(name, ())) if criterion.get(key) is not None]
        for name in fields
    }
    for found in (names["text"], names["weight"]):
        if len({repr(criterion[key]) for key in found}) > 1:
            raise DataError(f"rubric: expected one of {' and '.join(found)} in a criterion, got both")
    unused = {key for key, cell in criterion.items() if cell is not None} - {"tags", *chain(*names.values())}
    for key in sorted(unused):
        if _MEANS_MORE.search(key):
            raise DataError(
                f"rubric.{key}: expected a field that the criterion does not need, got "
                f"{criterion[key]!r:.60}. Map all fields (data.train.fields={{weight: {key}, ...}}), "
                "or drop this one from the data"
            )
    native = {name: criterion[found[0]] for name, found in names.items() if found}
    text = native.get("text")
    if isinstance(text, str) and (prefix := _CATEGORY.match(text)) is not None:
        native |= {"text": text[prefix.end() :], "category": prefix[1].lower()}
    tags = criterion.get("tags")
    axes = [str(tag) for tag in tags if str(tag).startswith("axis:")] if isinstance(tags, list) else []
    if isinstance(tags, dict) and tags.get("axis"):
        axes = [f"axis:{tags['axis']}"]
    if axes and "category" not in native:
        native["category"] = axes[0]
    if "id" in native:
        native["id"] = str(native["id"])
    return native


def with_input(instruction: Any, given: str) -> Any:
    """Alpaca's two columns as one prompt, without its boilerplate."""
    return f"{instruction}\n\n{given}" if isinstance(instruction, str) and given.strip() else instruction


def is_foreign(value: Mapping[str, Any]) -> bool:
    """Whether a row or its criteria use field names of other data sets."""
    rubric = value["rubric"]
    if "rubric_list" in value or "reward_model" in value:
        return True
    theirs = {alias for aliases in CRITERION_ALIASES.values() for alias in aliases}
    return isinstance(rubric, dict) or (
        isinstance(rubric, list)
        and any(isinstance(c, dict) and "text" not in c and theirs & set(c) for c in rubric)
    )


def has_points(value: Mapping[str, Any]) -> bool:
    """Whether criteria carry points, as HealthBench's do."""
    rubrics = first(value, "rubrics", ALIASES["rubric"])
    return isinstance(rubrics, list) and any(isinstance(c, dict) and "points" in c for c in rubrics)


def is_negative(weight: Any) -> bool:
    """Whether a weight, number or text, is negative."""
    try:
        return float(weight) < 0
    except (TypeError, ValueError):
        return False


def first(value: Mapping[str, Any], name: str, aliases: tuple[str, ...]) -> Any:
    """Returns a field under its own name or an alias; None if the row has it under none."""
    found = column(value, name, aliases)
    return None if found is None else value[found]


def column(value: Mapping[str, Any], name: str, aliases: tuple[str, ...]) -> str | None:
    """The name under which a row has a field."""
    return next((key for key in (name, *aliases) if value.get(key) is not None), None)


def renamed(value: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """Returns a row with the mapped columns under the native names."""
    theirs = {name: value[column] for name, column in fields.items() if column in value}
    taken = set(fields.values())
    return {name: cell for name, cell in value.items() if name not in taken} | theirs


def unpacked(value: dict[str, Any]) -> dict[str, Any]:
    """Lifts the fields that verl nests in reward_model and its ground_truth to the top of the row."""
    inner = value.get("reward_model")
    if not isinstance(inner, dict):
        return value
    truth = decoded(inner.get("ground_truth"), is_text=False)
    parts = {**inner, **(truth if isinstance(truth, dict) else {})}
    wanted = {"instruction_id_list", "kwargs", "rubric", *ALIASES["rubric"]}
    return {n: decoded(part, is_text=False) for n, part in parts.items() if n in wanted and part} | value
