"""Keeps the answers of the last validation for the caller that requested it, and the results of all."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import lightning as L

from herl.callbacks.base import HerlCallback
from herl.evaluation.intervals import OVERALL, evaluation_rows, prompt_rewards
from herl.module import HerlModule
from herl.rollout.improve import Trajectory


class KeepHeldout(HerlCallback):
    """Holds attempts at held-out prompts with their revisions; empty before the first validation."""

    def __init__(self) -> None:
        self.trajectories: tuple[Trajectory, ...] = ()
        self.before: dict[str, Any] = {}
        """Reward and an example of the validation before training. Checkpoints keep them, since a resumed run
        cannot repeat it."""
        self.validations: list[dict[str, Any]] = []
        """The results of the plain attempts, validation by validation: {"answers_sampled", "optimizer_steps",
        "rows", "heldout"}, the last of which is `prompt_rewards`. Between the first and the last, only rows
        over all criteria are kept."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the result before training, and those of all validations."""
        return {"before": self.before, "validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.before = state_dict["before"]
        self.validations = list(state_dict["validations"])

    def on_heldout(
        self, trainer: L.Trainer, module: HerlModule, trajectories: tuple[Trajectory, ...]
    ) -> None:
        self.trajectories = trajectories
        plain = [(one.task, one.answers[0]) for one in trajectories]
        rows = [asdict(row) for row in evaluation_rows(plain)]
        if not rows:
            return
        place = {name: module.counts[name] for name in ("answers_sampled", "optimizer_steps")}
        past = [one for one in self.validations if one["answers_sampled"] < place["answers_sampled"]]
        past[1:] = [_shortened(one) for one in past[1:]]
        self.validations = [*past, {**place, "rows": rows, "heldout": prompt_rewards(plain)}]


def _shortened(validation: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in validation.items() if name != "heldout"}
    return kept | {"rows": [row for row in validation["rows"] if row["name"] in OVERALL]}
