"""Records in plain types, for checkpoints: reading them runs no code.

A record becomes {its class: its fields}, a mapping {"Mapping": ...}, and a task its id, by which data has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from inspect import getmro
from typing import Any

from herl.types.answer import Judged, Judgement, Rollout, ToolCall, Turn
from herl.types.group import Experience, Group, Member
from herl.types.task import Task, Verdict

RECORDS = (Experience, Group, Judged, Judgement, Member, Rollout, ToolCall, Turn, Verdict)


def plain(value: Any, *more: type[Any]) -> Any:
    """Returns a record, or a tuple of some, in mappings, tuples, strings and numbers.

    Token ids and log-probs in tuples are not copied, since there may be millions. Those in arrays, which a
    checkpoint could not hold without code, become tuples.

    Args:
        value: The record.
        more: Further classes of records, which may be in it.
    """
    if isinstance(value, Task):
        return {"Task": value.id}
    if is_dataclass(value):
        kind = next(kind for kind in getmro(type(value)) if kind in (*RECORDS, *more))
        content = {field.name: plain(getattr(value, field.name), *more) for field in fields(kind)}
        return {kind.__name__: content}
    if isinstance(value, Mapping):
        return {"Mapping": dict(value)}
    if isinstance(value, tuple) and value and (is_dataclass(value[0]) or isinstance(value[0], Mapping)):
        return tuple(plain(one, *more) for one in value)
    is_array = isinstance(value, Sequence) and not isinstance(value, str | tuple)
    return tuple(value) if is_array else value


def restored(value: Any, tasks: Mapping[str, Task], *more: type[Any]) -> Any:
    """Returns what `plain` was given.

    Args:
        value: The result of `plain`.
        tasks: Tasks by id.
        more: The classes that `plain` was given.

    Raises:
        KeyError: a task is not there.
    """
    if isinstance(value, dict):
        [(name, content)] = value.items()
        if name == "Task":
            return tasks[content]
        if name == "Mapping":
            return content
        kind = next(kind for kind in (*RECORDS, *more) if kind.__name__ == name)
        return kind(**{name: restored(part, tasks, *more) for name, part in content.items()})
    if isinstance(value, tuple) and value and isinstance(value[0], dict):
        return tuple(restored(part, tasks, *more) for part in value)
    return value
