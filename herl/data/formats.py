"""A row -> a `Task`. The format is recognized by the row's fields.

| format      | recognized by                  | how it is read                                         |
|-------------|--------------------------------|--------------------------------------------------------|
| IFEval      | instruction_id_list            | one criterion per instruction (also IFBench, HIR)      |
| MulDimIF    | constraints                    | one criterion per [category, sub-category, text]       |
| HealthBench | rubrics of {criterion, points} | negative points mark undesirable criteria              |
| RaR         | question and rubric            | a prefix like "Essential Criteria:" is the category    |
| native      | prompt or messages, and rubric | [{text, weight, check, ...}] or plain strings          |
| prompt only | prompt or messages             | no criteria: for a judge that returns one number       |

Other common field names are recognized (`ALIASES`); a field map adds more. A rubric or a list of
instructions may also be nested in `reward_model` or its `ground_truth`, as in verl's rows. Alpaca's
`instruction` and `input` form one prompt. In the native format an unknown field is an error, since it is
probably misspelled; in the other formats it is listed, kept in the task's `meta`, and an error if it looks
like a part of the prompt (`columns`). Lists stored as JSON in a text column are decoded, and nulls are
missing fields (`cells`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import ValidationError

from herl.checks import read_check
from herl.checks.instructions import whole
from herl.data.cells import OWN, OWN_IN_JSON, check_unicode, decoded, present
from herl.data.columns import check_unused
from herl.data.foreign import (
    ALIASES,
    TEXTS,
    column,
    first,
    foreign_criterion,
    has_points,
    is_foreign,
    is_negative,
    message,
    renamed,
    unpacked,
    with_input,
)
from herl.data.row_schema import IFEvalRow, NativeRow, RowCriterion, RowMessage, explain
from herl.data.rows import Row
from herl.errors import ConfigError, DataError, did_you_mean
from herl.types import Criterion, Rubric, Task

MULDIMIF_LABELS = ("constraint_pattern", "difficulty")
"""Fields of a MulDimIF row that say what kind of row it is; they go into the task's `meta`."""
NegativeWeight = Literal["must_say", "met_is_bad", "met_is_good"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How to read the rows of one data set.

    Args:
        fields: Native field names -> names in this data set, for rows and criteria alike. Other fields of
            a row are listed (`herl.data.columns`).
        ignore: Columns to drop without a word.
        negative_weight: Whether meeting a criterion with a negative weight is bad, if the row does not say:
            `met_is_bad` ("advertises a product"), `met_is_good` ("does not advertise"), or `must_say`,
            which makes such a row an error. HealthBench rows default to met_is_bad.
        source: Name of the data set; None uses the row's.
        part: Begins the ids of rows that bring none, where they must differ from those of other data sets.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    ignore: Sequence[str] = ()
    negative_weight: NegativeWeight = "must_say"
    source: str | None = None
    part: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.ignore, str):
            raise ConfigError(f"data.ignore: expected a list of columns, got the text '{self.ignore}'")
        known = {*NativeRow.model_fields, *RowCriterion.model_fields}
        for name in self.fields:
            if name not in known:
                raise ConfigError(
                    f"data.fields.{name}: expected one of {sorted(known)}." + did_you_mean(name, known)
                )


def task_of(row: Row, reading: Reading | None = None) -> Task:
    """Returns the task of a row.

    Raises:
        DataError: the row cannot be used; names its place, the field, the expected and the actual value.
    """
    return read_row(row, reading or Reading())[0]


def read_row(row: Row, reading: Reading) -> tuple[Task, frozenset[str]]:
    """Returns the task of a row, and the row's columns that no field takes.

    Raises:
        DataError: the row cannot be used; names its place, the field, the expected and the actual value.
    """
    if isinstance(row.value, DataError):
        raise row.value
    if not isinstance(row.value, dict):
        raise DataError(f"{row.place}: expected a JSON object, got {type(row.value).__name__}")
    filled = present(row.value, OWN if row.filled else OWN_IN_JSON)
    given = {
        name: decoded(cell, is_text=name in TEXTS)
        for name, cell in filled.items()
        if name not in reading.ignore
    }
    value = unpacked(given)
    row_id = f"{reading.part}:{row.id}" if reading.part else row.id
    try:
        task, taken = _read(value, row_id, reading)
        unused = frozenset(
            name for name, cell in given.items() if name not in taken and cell not in ("", [], {})
        )
        check_unused(given, sorted(unused), task.messages)
        check_unicode({name: given[name] for name in unused})
    except ValidationError as error:
        raise DataError(f"{row.place}: {explain(error)}") from error
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from error
    if unused:  # a user's judge may read them
        task = replace(task, meta={**{name: given[name] for name in given if name in unused}, **task.meta})
    return task, unused


def _read(value: dict[str, Any], row_id: str, reading: Reading) -> tuple[Task, set[str]]:
    """Returns the task of a row, and the columns that it is made of."""
    if "instruction_id_list" in value and not reading.fields:
        check_unicode({name: value[name] for name in IFEvalRow.model_fields if name in value})
        return _ifeval_task(IFEvalRow.model_validate(value), row_id, reading), {
            *IFEvalRow.model_fields,
            "reward_model",
        }
    native, taken = _as_native(value, reading)
    check_unicode(native)
    return _native_task(NativeRow.model_validate(native), row_id, reading), taken


# Other formats -> the native one


def _as_native(value: Mapping[str, Any], reading: Reading) -> tuple[dict[str, Any], set[str]]:
    """A row in the native format, and the columns that it is made of."""
    if reading.fields:
        native = renamed(value, reading.fields)
        named = set(reading.fields)
        rubric = native.get("rubric")
        inner = {name: theirs for name, theirs in reading.fields.items() if name in RowCriterion.model_fields}
        if isinstance(rubric, list):
            native["rubric"] = [renamed(c, inner) if isinstance(c, dict) and inner else c for c in rubric]
        own = {name for name, theirs in reading.fields.items() if theirs not in value}
        taken = {*reading.fields.values(), *own, "id", "meta"}
        return _typed({k: v for k, v in native.items() if k in named or k in ("id", "meta")}, reading), taken
    if "constraints" in value:
        chat = column(value, "messages", ("conversations", "prompt"))
        return _muldimif(value, chat), {"id", "constraints", *MULDIMIF_LABELS, chat or ""}
    if "rubric" in value and ("prompt" in value or "messages" in value) and not is_foreign(value):
        return _typed(dict(value), reading), set(value)
    columns = {name: theirs for name in ("prompt", "messages", "rubric", "reference", "id", "source")
               if (theirs := column(value, name, ALIASES.get(name, ()))) is not None}  # fmt: skip
    native = {name: value[theirs] for name, theirs in columns.items()}
    if isinstance(value.get("meta"), dict):
        native["meta"], columns["meta"] = value["meta"], "meta"
    if "rubric" not in native:
        if "prompt" not in native and "messages" not in native:
            return dict(value), set(value)  # validation will name what is missing
    elif isinstance(native["rubric"], dict):  # {"criteria": [...]}
        native["rubric"] = first(native["rubric"], "criteria", ("rubric", "rubrics", "items"))
        if native["rubric"] is None:
            raise DataError(f"rubric: expected a list of criteria, got {value[columns['rubric']]!r:.80}")
    if isinstance(native.get("rubric"), list):
        native["rubric"] = [foreign_criterion(c, RowCriterion.model_fields) for c in native["rubric"]]
    if "messages" in native:
        for repeats in (native, columns):  # the messages as text
            repeats.pop("prompt", None)
        if isinstance(native["messages"], dict):
            native["messages"] = native["messages"].get("messages")
    ideal = value.get("ideal_completions_data")
    if isinstance(ideal, dict) and ideal.get("ideal_completion"):
        native["reference"] = ideal["ideal_completion"]
    if not isinstance(native.get("reference") or None, str):
        native.pop("reference", None)
    taken = {*columns.values(), "reward_model", "ideal_completions_data"}
    if columns.get("prompt") == "instruction" and isinstance(value.get("input"), str):
        native["prompt"] = with_input(native["prompt"], value["input"])
        taken.add("input")
    return _typed(native, reading, points=has_points(value)), taken


def _typed(native: dict[str, Any], reading: Reading, points: bool = False) -> dict[str, Any]:
    """Moves a chat from `prompt` to `messages`, and sets the polarity if the data set decides it."""
    if isinstance(native.get("prompt"), list):
        native["messages"] = native.pop("prompt")
    if isinstance(native.get("messages"), list):
        native["messages"] = [message(one) for one in native["messages"]]
    bad = reading.negative_weight == "met_is_bad" or (points and reading.negative_weight == "must_say")
    if (bad or reading.negative_weight == "met_is_good") and isinstance(native.get("rubric"), list):
        native["rubric"] = [
            {"undesirable": bad, **c} if isinstance(c, dict) and is_negative(c.get("weight")) else c
            for c in native["rubric"]
        ]
    return native


def _muldimif(value: Mapping[str, Any], chat: str | None) -> dict[str, Any]:
    constraints = value["constraints"]
    for triple in constraints if isinstance(constraints, list) else [constraints]:
        if not (isinstance(triple, list) and len(triple) == 3 and all(isinstance(p, str) for p in triple)):
            raise DataError(f"constraints: expected [category, sub-category, text], got {str(triple)[:80]!r}")
    native = {
        "id": value.get("id"),
        "messages": value[chat] if chat else None,
        "rubric": [{"text": text, "title": sub, "category": category} for category, sub, text in constraints],
    }
    labels = {name: value[name] for name in MULDIMIF_LABELS if name in value}
    return _typed(native | {"meta": labels}, Reading())


# Tasks


def _native_task(row: NativeRow, row_id: str, reading: Reading) -> Task:
    if (row.messages is None) == (row.prompt is None):
        raise DataError("expected either 'messages' or 'prompt', got both or neither")
    messages = row.messages or [RowMessage(role="user", content=row.prompt or "")]
    if messages[-1].role != "user":
        raise DataError(f"messages: expected the last role to be 'user', got '{messages[-1].role}'")
    parsed = [RowCriterion(text=c) if isinstance(c, str) else c for c in row.rubric or ()]
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
    if criteria and not any(criterion.weight > 0 for criterion in criteria):
        raise DataError("rubric: expected at least one positive weight, got none")
    ids = [criterion.id for criterion in criteria]
    if len(set(ids)) < len(ids):
        raise DataError(f"rubric: expected unique ids, got {ids}")
    return Task(
        id=row_id if row.id is None else str(row.id),
        messages=tuple(message.model_dump() for message in messages),
        rubric=Rubric(criteria=criteria),
        reference=row.reference,
        source=reading.source or row.source,
        meta=row.meta,
    )


def _sound_check(value: Any, where: str) -> Mapping[str, Any] | None:
    check: Mapping[str, Any] | None = value or None if isinstance(value, dict) else value
    if check is not None:
        read_check(check, where)
    return check


def _ifeval_task(row: IFEvalRow, row_id: str, reading: Reading) -> Task:
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
    messages = row.prompt if isinstance(row.prompt, list) else [RowMessage(role="user", content=row.prompt)]
    return Task(
        id=row_id if key is None else str(key),
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
    given = {key: whole(value) for key, value in kwargs.items() if value is not None}
    arguments = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in given.items())
    name = instruction.replace(":", ": ").replace("_", " ")
    return Criterion(
        id=instruction + suffix,
        text=text or (f"{name} ({arguments})" if arguments else name),
        category=instruction.split(":")[0],
        check={"kind": "instruction", "instruction_id": instruction, "kwargs": given},
    )
