"""Reads what a run left in its folder: summary.json, the settings it was given, the held-out curve.

Nothing here is needed to train, so a missing part is shown as missing. Only summary.json must be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # omegaconf brings it

from herl.errors import DataError
from herl.report.secret import without_secret
from herl.report.summary_file import Prompts, Row, Summary, parsed

_HOW_STARTED = ("hydra.", "hydra/", "resume=", "output_dir=")
"""Overrides that do not change what a run computes."""
LEFT_OUT = "left out"
"""The value of a setting that a run deleted, as in ~callbacks.alarms."""


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
    prompts: str
    """Fingerprint of the held-out prompts; "" if it is unknown."""
    rewards: tuple[float | None, ...]
    """Mean reward by prompt, in their order: None where nothing was judged. Empty if they were not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """What a run left in its folder."""

    folder: Path
    summary: Summary
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
        return self.summary.optimizer_steps is not None

    @property
    def curve(self) -> tuple[tuple[int, Result], ...]:
        """(answers sampled, held-out reward) of each validation that has a reward."""
        return tuple((one.answers, one.rows["reward"]) for one in self.measured)

    @property
    def measured(self) -> tuple[Validation, ...]:
        """The validations that have a reward."""
        return tuple(one for one in self.validations if "reward" in one.rows)

    @property
    def ended_early(self) -> bool:
        """Whether the run was stopped after its last measurement."""
        return bool(
            self.summary.stopped
            and self.measured
            and self.measured[-1].answers < self.summary.answers_sampled
        )

    def setting(self, key: str) -> str:
        """Returns a setting's value, as given or from the run's configuration; "" if the run has none. A part
        that builds an object is named by its class."""
        if key in self.settings:
            return self.settings[key]
        if key in self.choices:
            return self.choices[key]
        value = _at(self.config, key)
        if isinstance(value, Mapping):  # a part of which another run changed or left out something
            value = value.get("_target_", "its defaults")
        return "" if value is None else without_secret(key, str(value))


def read_run(folder: Path) -> RunFiles:
    """Reads a run's folder.

    Raises:
        DataError: it has no summary.json, or one that is not a run's; names the file and the part.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise DataError(
            f"{folder}: expected the folder of a finished run with summary.json, "
            + ("which is missing" if folder.is_dir() else "but there is no such folder")
        )
    summary = parsed(path.read_bytes(), str(path))
    given = _yaml(folder / ".hydra" / "overrides.yaml")
    overrides = [str(one) for one in given] if isinstance(given, list) else []
    choices = _at(_yaml(folder / ".hydra" / "hydra.yaml"), "hydra.runtime.choices")
    choices = choices if isinstance(choices, Mapping) else {}
    return RunFiles(
        folder=folder,
        summary=summary,
        validations=_validations(summary),
        settings=dict(_setting(one) for one in overrides if not one.startswith(_HOW_STARTED)),
        choices={str(key): str(value) for key, value in choices.items()},
        config=_yaml(folder / "config.yaml"),
    )


def _setting(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    if key.startswith("~"):
        return key[1:], LEFT_OUT
    return key, without_secret(key, value)


def _validations(summary: Summary) -> tuple[Validation, ...]:
    if summary.validations:
        return tuple(_validation(one.answers_sampled, one.rows, one.heldout) for one in summary.validations)
    guiding = [row for row in summary.results if not row.judge]
    rounds = sorted({row.revisions for row in guiding})
    prompts = dict(zip(rounds, summary.heldout, strict=False))
    return tuple(
        _validation(0, [row for row in guiding if row.revisions == number], prompts.get(number))
        for number in rounds
    )


def _validation(answers: int, rows: Iterable[Row], prompts: Prompts | None) -> Validation:
    return Validation(
        answers=answers,
        rows={row.name: Result(mean=row.mean, low=row.low, high=row.high, count=row.count) for row in rows},
        prompts=prompts.fingerprint if prompts else "",
        rewards=tuple(prompts.rewards or ()) if prompts else (),
    )


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
