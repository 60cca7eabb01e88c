"""Checks of gold judges: the further judges of `herl fit`, which judge held-out answers and teach nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice

from omegaconf import DictConfig, OmegaConf

from herl.data.hidden import check_share
from herl.errors import ConfigError, did_you_mean
from herl.metrics.gold_curves import best_when_highest
from herl.types import Task

ROWS = 10_000
"""Rows that are looked at for hidden criteria."""
NOTHING_TO_JUDGE = "further_judges: expected held-out prompts to judge, got none"


def check_gold(config: DictConfig) -> None:
    """Checks the settings of gold judges in a configuration of `herl fit`.

    Raises:
        ConfigError: a judge's name cannot be part of a curve's; there is no validation to judge; criteria are
            hidden and nothing sees them; or the best checkpoint depends on a curve of a gold judge that is
            not there.
    """
    given = OmegaConf.select(config, "further_judges") or {}
    judges = [str(name) for name, node in given.items() if node is not None]  # null leaves a judge out
    for name in judges:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(
                f"further_judges: expected a name of letters, digits, '_', '-' and '.', got '{name}'"
            )
    overfits = bool(OmegaConf.select(config, "trainer.overfit_batches"))  # which overrules the limit
    if judges and not overfits and OmegaConf.select(config, "trainer.limit_val_batches") == 0:
        raise ConfigError(f"{NOTHING_TO_JUDGE} (trainer.limit_val_batches=0)")
    share = OmegaConf.select(config, "data.hidden_criteria") or 0.0
    check_share(share)
    if share and not judges:
        raise ConfigError(
            "data.hidden_criteria: expected a judge that sees the hidden criteria, got none: add "
            "'+further_judges.gold=${judge}', or another judge (+judge@further_judges.gold=rule)"
        )
    monitor = str(OmegaConf.select(config, "callbacks.best_checkpoint.monitor"))
    known = best_when_highest(judges)
    if monitor.startswith(("gold/", "gaming/")) and monitor not in known:
        listed = (
            f"there are {', '.join(known)}" if known else "a run without further_judges has no such curves"
        )
        raise ConfigError(
            "callbacks.best_checkpoint.monitor: expected a gold judge's curve whose highest value is best, "
            f"got '{monitor}'; {listed}.{did_you_mean(monitor, known)}"
        )


def check_hidden(splits: Mapping[str, Sequence[Task]], share: float | None) -> None:
    """Checks that data with hidden criteria hides some.

    Args:
        splits: Tasks by split name.
        share: `data.hidden_criteria`.

    Raises:
        ConfigError: no held-out prompt hides a criterion.
    """
    tasks = splits.get("heldout", ())
    if share and not any(task.hidden for task in islice(tasks, ROWS)):
        raise ConfigError(
            f"data.hidden_criteria: expected prompts of which a share of {share} of the criteria can be "
            f"hidden, but none of the {len(tasks)} held-out ones hides any: a rubric keeps at "
            "least one with a positive weight"
        )
