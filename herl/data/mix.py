"""Several data sets at once, each with a name and a weight (`herl.data.mix_order` draws from them).

    data=mix 'data.train.sources={math: {path: math.jsonl, weight: 7}, chat: {path: chat.jsonl, weight: 3}}'

The tasks of a source have its name as their `source`, and rows without an id get one that begins with it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from herl.data.formats import NegativeWeight
from herl.data.sources import read_tasks
from herl.data.view import TaskView
from herl.errors import ConfigError, DataError, did_you_mean
from herl.types import Task


class HeldoutSource(BaseModel):
    """One of several files of prompts. A setting left out takes the value of the whole split."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="a file, a folder, hf:owner/name[:split] or lm_eval:task.yaml[:split]")
    where: dict[str, Any] | None = Field(default=None, description="a mapping of names to values")
    fields: dict[str, str] | None = Field(default=None, description="a mapping of herl's names to yours")
    ignore: list[str] | None = Field(default=None, description="a list of columns")
    negative_weight: NegativeWeight | None = Field(
        default=None, description="one of must_say, met_is_bad, met_is_good"
    )


class Source(HeldoutSource):
    """One of several files of training prompts."""

    weight: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, strict=True, description="a number above 0"
    )


S = TypeVar("S", bound=HeldoutSource)


class MixedTasks(TaskView):
    """The tasks of several sources, one source after the other.

    Args:
        parts: The tasks of each source, by its name.
        weights: Their weights by name; empty if every task comes once an epoch.
    """

    def __init__(self, parts: Mapping[str, Sequence[Task]], weights: Mapping[str, float]) -> None:
        self._parts = list(parts.values())
        self._ends = list(accumulate(map(len, self._parts)))
        super().__init__(range(self._ends[-1]))
        self.path = ", ".join(str(getattr(part, "path", "")) for part in self._parts)
        self.unused_columns = tuple(
            sorted({name for part in self._parts for name in getattr(part, "unused_columns", ())})
        )
        self.weights = dict(weights)

    def _task(self, place: int) -> Task:
        number = bisect_right(self._ends, place)
        return self._parts[number][place - (self._ends[number - 1] if number else 0)]


def train_mix(
    sources: Mapping[str, Any],
    *,
    fields: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    negative_weight: NegativeWeight = "must_say",
    on_bad_row: Literal["error", "skip"] = "error",
    quarantine: str | None = None,
) -> MixedTasks:
    """Reads training prompts from several places. Each task's `source` is the name of its source.

    Args:
        sources: Name -> {path, weight}. A source may also have `fields`, `ignore` and `negative_weight` of
            its own, and `where` (`herl.data.sources.read_tasks`). Either all have a weight or none has: a
            source's share of the prompts that are drawn is its weight over the sum of all weights.
        fields: herl's field names -> names in the data, for sources without `fields`.
        ignore: Columns to drop without a word, for sources without `ignore`.
        negative_weight: Meaning of a negative weight, if neither row nor source says.
        on_bad_row: `error` raises for a row that cannot be used; `skip` leaves it out and counts it.
        quarantine: File for skipped rows; each source's has the source's name at the end of the stem.

    Raises:
        ConfigError: a source's settings are wrong; names the key.
        DataError: a row cannot be used, a source has no prompts, or two have a task with the same id.
    """
    parsed = train_sources(sources)
    weights = {name: one.weight for name, one in parsed.items() if one.weight is not None}
    shared = {
        "fields": fields,
        "ignore": ignore,
        "negative_weight": negative_weight,
        "on_bad_row": on_bad_row,
    }
    return MixedTasks(_read("data.train.sources", parsed, quarantine, shared), weights)


def heldout_mix(
    sources: Mapping[str, Any] | None,
    *,
    fields: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    negative_weight: NegativeWeight = "must_say",
    on_bad_row: Literal["error", "skip"] = "error",
    quarantine: str | None = None,
) -> Sequence[Task]:
    """Reads held-out prompts from several places, one after the other; None for no prompts. All of them are
    answered, so they have no weights. The arguments and errors are otherwise those of `train_mix`."""
    if sources is None:
        return ()
    parsed = heldout_sources(sources)
    shared = {
        "fields": fields,
        "ignore": ignore,
        "negative_weight": negative_weight,
        "on_bad_row": on_bad_row,
    }
    return MixedTasks(_read("data.heldout.sources", parsed, quarantine, shared), {})


def train_sources(sources: Mapping[str, Any]) -> dict[str, Source]:
    """Returns the checked settings of `train_mix`, without reading a file.

    Raises:
        ConfigError: a source's settings are wrong; names the key.
    """
    key = "data.train.sources"
    parsed = _parsed(key, sources, Source)
    lacking = [name for name, one in parsed.items() if one.weight is None]
    if lacking and len(lacking) < len(parsed):
        raise ConfigError(
            f"{key}.{lacking[0]}.weight: expected a number above 0, since other sources have a weight, got "
            "none: give one to all of them, or to none"
        )
    return parsed


def heldout_sources(sources: Mapping[str, Any] | None) -> dict[str, HeldoutSource]:
    """Returns the checked settings of `heldout_mix`, without reading a file.

    Raises:
        ConfigError: a source's settings are wrong; names the key.
    """
    return {} if sources is None else _parsed("data.heldout.sources", sources, HeldoutSource)


def _parsed(key: str, sources: Mapping[str, Any], kind: type[S]) -> dict[str, S]:
    """The settings of each source, by name."""
    if not sources:
        raise ConfigError(
            f"{key}: expected at least one source, as in {{math: {{path: math.jsonl}}}}, got none"
        )
    found: dict[str, S] = {}
    for given, settings in sources.items():
        name = str(given)
        if not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(
                f"{key}: expected names of letters, digits, _, . and -, for curves and files, got {name!r}"
            )
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{key}.{name}: expected a mapping with a path, got {settings!r}")
        try:
            found[name] = kind.model_validate(dict(settings))
        except ValidationError as error:
            raise ConfigError(f"{key}.{name}.{_complaint(error, kind)}") from error
    return found


def _complaint(error: ValidationError, kind: type[HeldoutSource]) -> str:
    """Pydantic's first complaint: the key, what was expected of it, and what was got."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    known = kind.model_fields
    if first["type"] == "extra_forbidden":
        return f"{name}: unknown key; expected one of {', '.join(known)}.{did_you_mean(name, known)}"
    got = "none" if first["type"] == "missing" else repr(first["input"])
    return f"{name}: expected {known[name].description}, got {got}"


def _read(
    key: str, sources: Mapping[str, HeldoutSource], quarantine: str | None, shared: Mapping[str, Any]
) -> dict[str, Sequence[Task]]:
    """The tasks of each source, by its name. `shared` is for all sources that do not say otherwise."""
    parts: dict[str, Sequence[Task]] = {}
    owner: dict[str, str] = {}
    for name, source in sources.items():
        own = source.model_dump(exclude={"path", "weight"}, exclude_none=True)
        bad = Path(quarantine) if quarantine is not None else None
        parts[name] = read_tasks(
            source.path,
            **{**shared, **own},
            source=name,
            part=name,
            quarantine=None if bad is None else str(bad.with_name(f"{bad.stem}_{name}{bad.suffix}")),
        )
        if not parts[name]:
            raise DataError(f"{key}.{name}: expected at least one prompt, got none from {source.path}")
        for task in parts[name]:
            other = owner.setdefault(task.id, name)
            if other != name:
                raise DataError(
                    f"{key}: expected ids that are unique over all sources, got {task.id!r} in both "
                    f"{sources[other].path} ({other}) and {source.path} ({name}): rename one, or drop the "
                    "ids of a source, whose rows are then named after it"
                )
    return parts
