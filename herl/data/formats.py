"""A row -> a `Task`. The format is recognized by the row's fields.

| format      | recognized by                  | how it is read                                         |
|-------------|--------------------------------|--------------------------------------------------------|
| IFEval      | instruction_id_list            | one criterion per instruction (also IFBench, HIR)      |
| MulDimIF    | constraints                    | one criterion per [category, sub-category, text]       |
| HealthBench | rubrics of {criterion, points} | negative points mark undesirable criteria              |
| RaR         | question and rubric            | a prefix like "Essential Criteria:" is the category    |
| native      | prompt or messages, and rubric | [{text, weight, check, ...}] or plain strings          |

Other common field names are recognized (`ALIASES`); a field map adds more. A rubric or a list of
instructions may also be nested in `reward_model` or its `ground_truth`, as in verl's rows. In the native
format an unknown field is an error, since it is probably misspelled; in the other formats it is ignored.
Lists stored as JSON in a text column are decoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from herl.checks import read_check, without_nulls
from herl.data.rows import Row
from herl.errors import ConfigError, DataError, did_you_mean
from herl.types import Criterion, Rubric, Task

NegativeWeight = Literal["must_say", "met_is_bad", "met_is_good"]
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
_TEXTS = {"prompt", "reference", *ALIASES["prompt"], *ALIASES["reference"]}
_CATEGORY = re.compile(
    r"^\s*(Essential|Important|Optional|Pitfall)(?: Criteria| Criterion)?\s*:\s*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How to read the rows of one data set.

    Args:
        fields: Native field names -> names in this data set, for rows and criteria alike. Other fields of
            a row are ignored.
        negative_weight: Whether meeting a criterion with a negative weight is bad, if the row does not say:
            `met_is_bad` ("advertises a product"), `met_is_good` ("does not advertise"), or `must_say`,
            which makes such a row an error. HealthBench rows default to met_is_bad.
        source: Name of the data set; None uses the row's.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    negative_weight: NegativeWeight = "must_say"
    source: str | None = None

    def __post_init__(self) -> None:
        known = {*_Native.model_fields, *_Criterion.model_fields}
        for name in self.fields:
            if name not in known:
                raise ConfigError(
                    f"data.fields.{name}: expected one of {sorted(known)}." + did_you_mean(name, known)
                )


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Message(_Row):
    role: str
    content: str


class _Criterion(_Row):
    text: str = Field(min_length=1)
    id: str = ""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    title: str = ""
    category: str = ""
    check: Any = None
    undesirable: bool | None = None
    gate: bool = False

    @model_validator(mode="after")
    def _negative_weight_needs_polarity(self) -> _Criterion:
        if self.weight < 0 and self.undesirable is None:
            raise ValueError(
                "a negative weight needs 'undesirable': true if meeting it is bad (\"advertises\"), "
                'false if meeting it is good ("does not advertise"). To decide it for a whole data set, set '
                "negative_weight=met_is_bad or met_is_good"
            )
        return self


class _Native(_Row):
    id: str | int | None = None
    messages: list[_Message] | None = Field(default=None, min_length=1)
    prompt: str | None = None
    rubric: list[_Criterion | str] = Field(min_length=1)
    reference: str | None = None
    source: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)


class _IFEval(BaseModel):
    key: str | int | None = None
    id: str | int | None = None
    prompt: str | list[_Message]
    instruction_id_list: list[str] = Field(min_length=1)
    kwargs: list[dict[str, Any] | None]
    criteria: list[str] = Field(default_factory=list)
    """The instructions in words, if the data has them."""


def task_of(row: Row, reading: Reading | None = None) -> Task:
    """Returns the task of a row.

    Raises:
        DataError: the row cannot be used; names its place, the field, the expected and the actual value.
    """
    reading = reading or Reading()
    if isinstance(row.value, DataError):
        raise row.value
    if not isinstance(row.value, dict):
        raise DataError(f"{row.place}: expected a JSON object, got {type(row.value).__name__}")
    value = _unpacked({name: _decoded(name, cell) for name, cell in row.value.items()})
    try:
        if "instruction_id_list" in value and not reading.fields:
            return _ifeval_task(_IFEval.model_validate(value), row.number, reading)
        return _native_task(_Native.model_validate(_as_native(value, reading)), row.number, reading)
    except ValidationError as error:
        raise DataError(f"{row.place}: {_explain(error)}") from error
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from error


# Other formats -> the native one


def _as_native(value: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    if reading.fields:
        native = _renamed(value, reading.fields)
        named = set(reading.fields)
        rubric = native.get("rubric")
        inner = {name: theirs for name, theirs in reading.fields.items() if name in _Criterion.model_fields}
        if isinstance(rubric, list):
            native["rubric"] = [_renamed(c, inner) if isinstance(c, dict) and inner else c for c in rubric]
        return _typed({k: v for k, v in native.items() if k in named or k in ("id", "meta")}, reading)
    if "constraints" in value:
        return _muldimif(value)
    if "rubric" in value and ("prompt" in value or "messages" in value) and not _is_foreign(value):
        return _typed(dict(value), reading)
    native = {name: theirs for name in ("prompt", "messages", "rubric", "reference", "id", "source")
              if (theirs := _first(value, name, ALIASES.get(name, ()))) is not None}  # fmt: skip
    if "rubric" not in native:
        return dict(value)  # validation will name the missing field
    if isinstance(native["rubric"], dict):  # {"criteria": [...]}
        native["rubric"] = _first(native["rubric"], "criteria", ("rubric", "rubrics", "items"))
    if isinstance(native["rubric"], list):
        native["rubric"] = [_foreign_criterion(c) for c in native["rubric"]]
    if "messages" in native:
        native.pop("prompt", None)  # repeats the messages as text
        if isinstance(native["messages"], dict):
            native["messages"] = native["messages"].get("messages")
    ideal = value.get("ideal_completions_data")
    if isinstance(ideal, dict) and ideal.get("ideal_completion"):
        native["reference"] = ideal["ideal_completion"]
    if not isinstance(native.get("reference") or None, str):
        native.pop("reference", None)
    return _typed(native, reading, points=_has_points(value))


def _typed(native: dict[str, Any], reading: Reading, points: bool = False) -> dict[str, Any]:
    """Moves a chat from `prompt` to `messages`, and sets the polarity if the data set decides it."""
    if isinstance(native.get("prompt"), list):
        native["messages"] = native.pop("prompt")
    if isinstance(native.get("messages"), list):
        native["messages"] = [_message(message) for message in native["messages"]]
    bad = reading.negative_weight == "met_is_bad" or (points and reading.negative_weight == "must_say")
    if (bad or reading.negative_weight == "met_is_good") and isinstance(native.get("rubric"), list):
        native["rubric"] = [
            {"undesirable": bad, **c} if isinstance(c, dict) and _is_negative(c.get("weight")) else c
            for c in native["rubric"]
        ]
    return native


def _message(message: Any) -> Any:
    """A message's role and content, also from {"from": "human", "value": ...}; other fields are dropped."""
    if not isinstance(message, dict):
        return message
    role = str(message.get("role", message.get("from")))
    role = {"human": "user", "gpt": "assistant"}.get(role, role)
    return {"role": role, "content": message.get("content", message.get("value"))}


def _foreign_criterion(criterion: Any) -> Any:
    if not isinstance(criterion, dict):
        return criterion
    native = {name: found for name in _Criterion.model_fields
              if (found := _first(criterion, name, CRITERION_ALIASES.get(name, ()))) is not None}  # fmt: skip
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


def _muldimif(value: Mapping[str, Any]) -> dict[str, Any]:
    constraints = value["constraints"]
    for triple in constraints if isinstance(constraints, list) else [constraints]:
        if not (isinstance(triple, list) and len(triple) == 3 and all(isinstance(p, str) for p in triple)):
            raise DataError(f"constraints: expected [category, sub-category, text], got {str(triple)[:80]!r}")
    native = {
        "id": value.get("id"),
        "messages": _first(value, "messages", ("conversations", "prompt")),
        "rubric": [{"text": text, "title": sub, "category": category} for category, sub, text in constraints],
    }
    return _typed(native, Reading())


def _is_foreign(value: Mapping[str, Any]) -> bool:
    """Whether a row or its criteria use field names of other data sets."""
    rubric = value["rubric"]
    if "rubric_list" in value or "reward_model" in value:
        return True
    theirs = {alias for aliases in CRITERION_ALIASES.values() for alias in aliases}
    return isinstance(rubric, dict) or (
        isinstance(rubric, list)
        and any(isinstance(c, dict) and "text" not in c and theirs & set(c) for c in rubric)
    )


def _has_points(value: Mapping[str, Any]) -> bool:
    rubrics = _first(value, "rubrics", ALIASES["rubric"])
    return isinstance(rubrics, list) and any(isinstance(c, dict) and "points" in c for c in rubrics)


def _is_negative(weight: Any) -> bool:
    try:
        return float(weight) < 0
    except (TypeError, ValueError):
        return False


def _first(value: Mapping[str, Any], name: str, aliases: tuple[str, ...]) -> Any:
    return next((value[key] for key in (name, *aliases) if value.get(key) is not None), None)


def _renamed(value: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    theirs = {name: value[column] for name, column in fields.items() if column in value}
    taken = set(fields.values())
    return {name: cell for name, cell in value.items() if name not in taken} | theirs


def _decoded(name: str, cell: Any) -> Any:
    """Decodes a list or an object stored as JSON in a text column. A prompt that is JSON stays text."""
    if not isinstance(cell, str) or cell.lstrip()[:2] not in ("[{", '["', "[[", '{"'):
        return cell
    try:
        found = json.loads(cell)
    except (json.JSONDecodeError, RecursionError):
        return cell
    if name in _TEXTS:
        chat = isinstance(found, list) and all(isinstance(m, dict) and "role" in m for m in found)
        return found if chat else cell
    return found


def _unpacked(value: dict[str, Any]) -> dict[str, Any]:
    """Lifts the fields that verl nests in reward_model and its ground_truth to the top of the row."""
    inner = value.get("reward_model")
    if not isinstance(inner, dict):
        return value
    truth = _decoded("ground_truth", inner.get("ground_truth"))
    parts = {**inner, **(truth if isinstance(truth, dict) else {})}
    wanted = {"instruction_id_list", "kwargs", "rubric", *ALIASES["rubric"]}
    return {name: _decoded(name, part) for name, part in parts.items() if name in wanted and part} | value


# Tasks


def _native_task(row: _Native, number: int, reading: Reading) -> Task:
    if (row.messages is None) == (row.prompt is None):
        raise DataError("expected either 'messages' or 'prompt', got both or neither")
    messages = row.messages or [_Message(role="user", content=row.prompt or "")]
    if messages[-1].role != "user":
        raise DataError(f"messages: expected the last role to be 'user', got '{messages[-1].role}'")
    parsed = [_Criterion(text=c) if isinstance(c, str) else c for c in row.rubric]
    criteria = tuple(
        Criterion(
            **criterion.model_dump(exclude={"id", "undesirable", "check"}),
            check=_sound_check(criterion.check, f"rubric.{number - 1}.check"),
            id=criterion.id or f"c{number}",
            named=bool(criterion.id),
            undesirable=bool(criterion.undesirable),
        )
        for number, criterion in enumerate(parsed, start=1)
    )
    if not any(criterion.weight > 0 for criterion in criteria):
        raise DataError("rubric: expected at least one positive weight, got none")
    ids = [criterion.id for criterion in criteria]
    if len(set(ids)) < len(ids):
        raise DataError(f"rubric: expected unique ids, got {ids}")
    return Task(
        id=str(number if row.id is None else row.id),
        messages=tuple(message.model_dump() for message in messages),
        rubric=Rubric(criteria=criteria),
        reference=row.reference,
        source=reading.source or row.source,
        meta=row.meta,
    )


def _sound_check(value: Any, where: str) -> Mapping[str, Any] | None:
    check: Mapping[str, Any] | None = without_nulls(value) or None if isinstance(value, dict) else value
    if check is not None:
        read_check(check, where)
    return check


def _ifeval_task(row: _IFEval, number: int, reading: Reading) -> Task:
    if len(row.kwargs) != len(row.instruction_id_list):
        raise DataError(
            f"kwargs: expected {len(row.instruction_id_list)} entries, one per instruction, "
            f"got {len(row.kwargs)}"
        )
    criteria: list[Criterion] = []
    texts = row.criteria if len(row.criteria) == len(row.kwargs) else [""] * len(row.kwargs)
    for instruction, kwargs, text in zip(row.instruction_id_list, row.kwargs, texts, strict=True):
        times = row.instruction_id_list[: len(criteria)].count(instruction)
        suffix = f"#{times + 1}" if times else ""
        criteria.append(instruction_criterion(instruction, kwargs or {}, text, suffix))
        read_check(criteria[-1].check, f"instruction_id_list.{len(criteria) - 1}")
    key = row.id if row.key is None else row.key
    messages = row.prompt if isinstance(row.prompt, list) else [_Message(role="user", content=row.prompt)]
    return Task(
        id=str(number if key is None else key),
        messages=tuple(message.model_dump() for message in messages),
        rubric=Rubric(criteria=tuple(criteria)),
        source=reading.source or "ifeval",
    )


def instruction_criterion(
    instruction: str, kwargs: Mapping[str, Any], text: str = "", suffix: str = ""
) -> Criterion:
    """Returns the criterion of a verifiable instruction, e.g. "punctuation:no_comma".

    Without a text, the criterion states the instruction's name and arguments. The suffix distinguishes the
    ids of two instructions of the same kind.
    """
    given = {key: _whole(value) for key, value in kwargs.items() if value is not None}
    arguments = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in given.items())
    name = instruction.replace(":", ": ").replace("_", " ")
    return Criterion(
        id=instruction + suffix,
        text=text or (f"{name} ({arguments})" if arguments else name),
        category=instruction.split(":")[0],
        check={"kind": "instruction", "instruction_id": instruction, "kwargs": given},
    )


def _whole(value: Any) -> Any:
    """Turns 5.0 into 5: tables store whole numbers as floats in columns with missing values."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _explain(error: ValidationError) -> str:
    """pydantic's first complaint as field, expected and got."""
    first = error.errors()[0]
    # pydantic also names the branches of a union, such as "_Criterion" or "function-after[...]"
    steps = [str(part) for part in first["loc"]]
    name = ".".join(step for step in steps if not step.startswith(("_", "function-")))
    got = "nothing" if first["type"] == "missing" else repr(first["input"])[:80]
    return f"{name}: {first['msg']}, got {got}"
