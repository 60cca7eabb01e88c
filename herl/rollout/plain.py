"""The result of a batch in plain types, for checkpoints: reading one runs no code.

A record becomes {its class: its fields}, a mapping {"Mapping": ...}, and a task its id, by which data has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from inspect import getmro
from typing import Any

from herl.rollout.collect import Collection
from herl.rollout.exchange import Numbers
from herl.types import Experience, Group, Judged, Judgement, Member, Rollout, Task, Verdict

RECORDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (Collection, Experience, Group, Judged, Judgement, Member, Rollout, Verdict)
}


def plain(value: Any) -> Any:
    """Returns a collection, or a part of one, in mappings, tuples, strings and numbers.

    Token ids and log-probs in tuples are not copied, since there may be millions.
    """
    if isinstance(value, Task):
        return {"Task": value.id}
    if is_dataclass(value):
        name = next(kind.__name__ for kind in getmro(type(value)) if kind.__name__ in RECORDS)
        return {name: {field.name: plain(getattr(value, field.name)) for field in fields(RECORDS[name])}}
    if isinstance(value, Mapping):
        return {"Mapping": dict(value)}
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return tuple(map(plain, value))
    return tuple(value) if isinstance(value, Numbers) else value


def restored(value: Any, tasks: Mapping[str, Task]) -> Any:
    """Returns what `plain` was given.

    Args:
        value: The result of `plain`.
        tasks: Tasks by id.

    Raises:
        KeyError: a task is not there.
    """
    if isinstance(value, dict):
        [(kind, content)] = value.items()
        if kind == "Task":
            return tasks[content]
        if kind == "Mapping":
            return content
        return RECORDS[kind](**{name: restored(part, tasks) for name, part in content.items()})
    if isinstance(value, tuple) and value and isinstance(value[0], dict):
        return tuple(restored(part, tasks) for part in value)
    return value
