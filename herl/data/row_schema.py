"""The shape of a row, and what is said of a row that has another one: the field, expected and got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from herl.checks.reading import shown
from herl.errors import did_you_mean

ENTRIES = {
    "rubric": "a text, or an object with a text",
    "kwargs": "an object of arguments",
    "messages": "a message with role and content",
    "prompt": "a message with role and content",
}
"""What the entries of a row's lists are, in words; others are texts."""


class _Strict(BaseModel):
    """A shape without further fields."""

    model_config = ConfigDict(extra="forbid")


class RowMessage(_Strict):
    """One message of a conversation."""

    role: str = Field(description="a text")
    content: str = Field(description="a text")


class RowCriterion(_Strict):
    """One criterion of a rubric."""

    text: str = Field(min_length=1, description="a text that is not empty")
    id: str = Field(default="", description="a text")
    weight: float = Field(default=1.0, allow_inf_nan=False, description="a number")
    title: str = Field(default="", description="a text")
    category: str = Field(default="", description="a text")
    check: Any = None
    undesirable: bool | None = Field(default=None, description="true or false")
    gate: bool = Field(default=False, description="true or false")

    @model_validator(mode="after")
    def _negative_weight_needs_polarity(self) -> RowCriterion:
        if self.weight < 0 and self.undesirable is None:
            raise ValueError(
                "a negative weight needs 'undesirable': true if meeting it is bad (\"advertises\"), "
                'false if meeting it is good ("does not advertise"). To decide it for a whole data set, set '
                "data.train.negative_weight=met_is_bad or met_is_good"
            )
        return self


class NativeRow(_Strict):
    """A row in the native format."""

    id: str | int | None = Field(default=None, description="a text or a whole number")
    messages: list[RowMessage] | None = Field(
        default=None, min_length=1, description="a list of messages with role and content"
    )
    prompt: str | None = Field(default=None, description="a text, or a list of messages")
    rubric: list[RowCriterion | str] | None = Field(
        default=None,
        min_length=1,
        description="a list of criteria, each a text or an object with a text (a row without criteria lacks "
        "the field)",
    )
    reference: str | None = Field(default=None, description="a text")
    source: str = Field(default="", description="a text")
    meta: dict[str, Any] = Field(default_factory=dict, description="an object")


class IFEvalRow(BaseModel):
    """A row of IFEval, IFBench or HIR."""

    key: str | int | None = Field(default=None, description="a text or a whole number")
    id: str | int | None = Field(default=None, description="a text or a whole number")
    prompt: str | list[RowMessage] = Field(description="a text, or a list of messages")
    instruction_id_list: list[str] = Field(min_length=1, description="a list of instructions' names")
    kwargs: list[dict[str, Any] | None] = Field(
        description="a list with an object of arguments for each instruction"
    )
    criteria: list[str] = Field(default_factory=list, description="a list of texts")
    """The instructions in words, if the data has them."""


def explain(error: ValidationError) -> str:
    """Returns pydantic's first complaint as a field, what was expected of it, and what was got."""
    first = error.errors()[0]
    # pydantic also names the branches of a union, such as "_Criterion" or "function-after[...]"
    steps = [
        step
        for step in first["loc"]
        if not str(step).startswith(("RowCriterion", "function-", "list[", "dict["))
    ]
    steps = [step for step in steps if step not in ("str", "int")]
    name = ".".join(map(str, steps))
    if first["type"] == "extra_forbidden":
        return f"{name}: {_unknown(steps)}"
    if first["type"] == "value_error":
        return f"{name}: {first['ctx']['error']}, got {shown(first['input'])}"
    got = "nothing" if first["type"] == "missing" else shown(first["input"])
    return f"{name}: expected {_expected(error.title, steps)}, got {got}"


def _fields(model: str, steps: Sequence[str | int]) -> Mapping[str, FieldInfo]:
    """The fields of the row, the message or the criterion that a path leads into."""
    if len(steps) == 3:
        return (RowMessage if steps[0] in ("messages", "prompt") else RowCriterion).model_fields
    return (IFEvalRow if model == IFEvalRow.__name__ else NativeRow).model_fields


def _expected(model: str, steps: Sequence[str | int]) -> str:
    if len(steps) == 2:
        return ENTRIES.get(str(steps[0]), "a text")
    described = _fields(model, steps).get(str(steps[-1]))
    return str(described.description) if described else "another value"


def _unknown(steps: Sequence[str | int]) -> str:
    """What is said of a field that no format has."""
    fields, name = _fields(NativeRow.__name__, steps), str(steps[-1])
    told = f"unknown field '{name}'; expected one of {', '.join(fields)}.{did_you_mean(name, fields)}"
    if len(steps) > 1:
        return told
    return (
        f"{told} To keep it for your own judge, move it into `meta`; to drop it, data.train.ignore=[{name}]"
    )
