"""Reads what a run left in its folder: summary.json, the settings it was given, the held-out curve.

Nothing here is needed to train, so a missing part is shown as missing. Only summary.json must be there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # omegaconf brings it

from herl.errors import DataError

_SECRET = r"api_?key|secret|passw\w*|credentials?|authorization|bearer|headers|\btoken"
_SECRET_KEY = re.compile(rf"(?i)({_SECRET})$")
_SECRET_INSIDE = re.compile(rf"(?i)({_SECRET})['\"]?\s*[:=]")
_SECRET_VALUE = re.compile(r"\b(sk|hf|ghp|xox[bp]|glpat)[-_][A-Za-z0-9_-]{8,}|://[^/\s@]+:[^/\s@]+@")
HIDDEN = "(hidden)"
_HOW_STARTED = ("hydra.", "hydra/", "resume=", "output_dir=")
"""Overrides that do not change what a run computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A mean over answers to held-out prompts."""

    mean: float
    low: float
    """Lower end of the 95 % confidence interval; `high` is the upper end."""
    high: float
    count: int
    """Number of answers or verdicts averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One validation of a run."""

    answers: int
    """Answers that the run had sampled."""
    rows: Mapping[str, Result]
    """Results of the plain attempts by name, as in `herl.evaluation.intervals.Row`. Those by criterion and
    category are kept for the first and the last validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """What a run left in its folder."""

    folder: Path
    summary: Mapping[str, Any]
    validations: tuple[Validation, ...]
    """In order. An evaluation has one for each number of revisions, all at 0 answers."""
    settings: Mapping[str, str]
    """The settings that the run was given, by key; secrets are hidden."""
    choices: Mapping[str, str]
    """The option chosen in each group, as {"algorithm": "herl"}."""
    config: Any
    """config.yaml as plain values, in which nothing is resolved: a reference may lead to a secret."""

    @property
    def trained(self) -> bool:
        """Whether this was a training run."""
        return "optimizer_steps" in self.summary

    @property
    def curve(self) -> tuple[tuple[int, Result], ...]:
        """(answers sampled, held-out reward) of each validation that has a reward."""
        return tuple((one.answers, one.rows["reward"]) for one in self.validations if "reward" in one.rows)

    def setting(self, key: str) -> str:
        """Returns a setting's value, as given or from the run's configuration; "" if the run has none."""
        if key in self.settings:
            return self.settings[key]
        if key in self.choices:
            return self.choices[key]
        value = _at(self.config, key)
        return "" if value is None else without_secret(key, str(value))


def read_run(folder: Path) -> RunFiles:
    """Reads a run's folder.

    Raises:
        DataError: it has no summary.json, or one that is not a run's.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise DataError(
            f"{folder}: expected the folder of a finished run with summary.json, "
            + ("which is missing" if folder.is_dir() else "but there is no such folder")
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        validations = _validations(summary)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected the summary that a run writes: {error!r}") from error
    given = _yaml(folder / ".hydra" / "overrides.yaml")
    overrides = [str(one) for one in given] if isinstance(given, list) else []
    choices = _at(_yaml(folder / ".hydra" / "hydra.yaml"), "hydra.runtime.choices")
    return RunFiles(
        folder=folder,
        summary=summary,
        validations=validations,
        settings=dict(_setting(one) for one in overrides if not one.startswith(_HOW_STARTED)),
        choices={str(key): str(value) for key, value in (choices or {}).items()},
        config=_yaml(folder / "config.yaml"),
    )


def without_secret(key: str, value: str) -> str:
    """Returns a setting's value, or "(hidden)" if it is or holds a password, key or token."""
    found = _SECRET_KEY.search(key) or _SECRET_INSIDE.search(value) or _SECRET_VALUE.search(value)
    return HIDDEN if found else value


def _setting(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, without_secret(key, value)


def _validations(summary: Mapping[str, Any]) -> tuple[Validation, ...]:
    found = [
        Validation(answers=int(one["answers_sampled"]), rows=_rows(one["rows"]))
        for one in summary.get("validations", ())
    ]
    if found or "results" not in summary:
        return tuple(found)
    guiding = [row for row in summary["results"] if not row["judge"]]
    rounds = sorted({row["revisions"] for row in guiding})
    return tuple(
        Validation(answers=0, rows=_rows(row for row in guiding if row["revisions"] == number))
        for number in rounds
    )


def _rows(rows: Any) -> dict[str, Result]:
    return {
        row["name"]: Result(mean=row["mean"], low=row["low"], high=row["high"], count=row["count"])
        for row in rows
    }


def _yaml(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return {}  # shown as missing


def _at(plain: Any, key: str) -> Any:
    """Returns the value at a dotted key, or None."""
    for name in key.split("."):
        plain = plain.get(name) if isinstance(plain, Mapping) else None
    return plain
