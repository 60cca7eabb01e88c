"""Judges that teach nothing judge the held-out answers of every validation again.

    held-out batch -> answers, judged for training -> gold judges (while the next batch is sampled) -> curves

The policy never learns from their rewards. They see hidden criteria (`herl.data.hidden`) as well. A gold
judge has its own abstention window and its own budget, with the limits of `module.judge_runner`, so that it
cannot spend what the training judge needs: a run with k of them may spend k + 1 times as much. Whatever it
fails at abstains with a warning, and the training goes on; only a judge that cannot work at all, e.g. without
its key, is an error, before the training.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import lightning as L

from herl.callbacks.base import HerlCallback
from herl.distributed import gather_results, rank, together, world_size
from herl.errors import ConfigError, JudgeStop
from herl.judge import Judge, JudgeRunner
from herl.metrics.gold import Opening, Rejudged, gaming_metrics, gaps, gold_metrics, opening
from herl.metrics.gold_curves import gold_curves
from herl.metrics.report import log_to_lightning
from herl.module import HerlModule
from herl.rollout.improve import Trajectory
from herl.types import Judged

logger = logging.getLogger(__name__)


class GoldJudges(HerlCallback):
    """Judges plain held-out answers by further judges, and reports how the training judge departs from them.

    Curves: `gold/<name>/...`, `gaming/...` and, by criterion, `gold_criterion/<name>/<id>` and
    `gaming_criterion/<name>/<id>` (`herl.metrics.gold`). `Alarms` warns when the gap opens, and
    `BestCheckpoint` can monitor `gold/<name>/reward`.

    Args:
        judges: Judges by name.
    """

    def __init__(self, judges: Mapping[str, Judge]) -> None:
        self.judges = dict(judges)
        self.curves = frozenset(gold_curves(self.judges))
        """Curves that a validation may have; what abstains is missing from it."""
        self.openings: dict[str, Opening] = {}
        """How far each judge's gap has opened, as of the last validation; empty at the first one."""
        self.validations: list[dict[str, Any]] = []
        """{"answers_sampled", "optimizer_steps", "curves": {name: value}} of each validation."""
        self._first: dict[str, dict[str, float]] = {}  # judge -> prompt -> gap, at the first validation
        self._runners: dict[str, JudgeRunner] = {}
        self._asked: dict[str, dict[int, Future[Judged]]] = {}  # judge -> place of the answer -> judgement
        self._given = 0  # answers of the current validation that the judges have got
        self._restored = False

    # State

    def state_dict(self) -> dict[str, Any]:
        """Returns the first gaps, the results so far, and what the judges have spent."""
        return {
            "first": self._first,
            "validations": self.validations,
            "judges": {name: runner.state_dict() for name, runner in self._runners.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them, once: Lightning calls this for the validation before a resumed training, and again
        for the training, when that validation has added to them."""
        if self._restored:
            return
        self._restored = True
        self._first = dict(state_dict["first"])
        self.validations = list(state_dict["validations"])
        for name, state in state_dict["judges"].items():
            if name in self._runners:
                self._runners[name].load_state_dict(state)

    def spent(self) -> dict[str, float]:
        """Returns the calls, tokens and money that all gold judges have used so far, by their budgets."""
        budgets = [runner.budget for runner in self._runners.values()]
        return {name: sum(one.spent(name) for one in budgets) for name in ("calls", "tokens", "cost")}

    # Open and close

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Opens the judges."""
        assert isinstance(pl_module, HerlModule)
        for name, judge in self.judges.items():
            if name not in self._runners:
                self._runners[name] = _runner(pl_module.stages.judge_runner, judge)
            together(self._runners[name].open)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ends the judges' threads."""
        self._end_threads()

    def on_error(self, trainer: L.Trainer, module: HerlModule, error: BaseException) -> None:
        self._end_threads()

    def close(self) -> None:
        """Ends the judges' threads, and releases their models and servers."""
        self._end_threads()
        for judge in self.judges.values():
            judge.close()

    def _end_threads(self) -> None:
        for runner in self._runners.values():
            runner.close()

    # Judge

    def on_heldout_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        self._asked = {name: {} for name in self.judges}
        self._given = 0

    def on_heldout_batch(self, trainer: L.Trainer, module: HerlModule, batch_idx: int) -> None:
        """Gives this rank's share of the new answers to the judges, and does not wait for them."""
        new, start = self._trajectories[self._given :], self._given
        self._given += len(new)
        for place, one in enumerate(new, start):
            if place % world_size() == rank():
                for name, runner in self._runners.items():
                    self._asked[name][place] = runner.submit(one.task.whole, one.answers[0].rollout)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Waits for the judgements, and reports them before callbacks choose the best checkpoint."""
        super().on_validation_epoch_end(trainer, pl_module)
        assert isinstance(pl_module, HerlModule)
        if not self._trajectories:
            return
        with pl_module.clock.time("gold"):
            answers = self._answers(self._trajectories)
        found = {name: gaps(one) for name, one in answers.items()}
        compared = {name: opening(self._first[name], found[name]) for name in found if name in self._first}
        self.openings = {name: one for name, one in compared.items() if one is not None}
        for name, first in found.items():
            if first:
                self._first.setdefault(name, first)
        metrics = gaming_metrics(answers, self.openings)
        for name, one in answers.items():
            metrics |= gold_metrics(name, one)
        self._keep(pl_module, metrics)
        log_to_lightning(pl_module, metrics)
        pl_module.record(metrics)

    def _keep(self, module: HerlModule, metrics: Mapping[str, float]) -> None:
        place = {name: module.counts[name] for name in ("answers_sampled", "optimizer_steps")}
        past = [one for one in self.validations if one["answers_sampled"] < place["answers_sampled"]]
        kept = {name: metrics[name] for name in sorted(self.curves & metrics.keys())}
        self.validations = [*past, {**place, "curves": kept}]

    def _answers(self, trajectories: list[Trajectory]) -> dict[str, list[Rejudged]]:
        """All judgements of this validation by judge, the same on every rank. A judge that could not be asked
        about some answers, or that abstained too often, is left out: a mean over the others would mislead."""
        is_first = not self._first
        parts = gather_results(lambda: {name: _waited(one, is_first) for name, one in self._asked.items()})
        self._asked = {}
        answers: dict[str, list[Rejudged]] = {}
        for name, runner in self._runners.items():
            judged_at: dict[int, Judged] = {}
            failures: list[str] = []
            for part in parts:
                judged_at |= part[name][0]
                failures += part[name][1]
            failures += _watched(runner, [judged_at[place] for place in sorted(judged_at)])
            if not failures:
                answers[name] = [
                    Rejudged(task=one.task, trained=one.answers[0], gold=judged_at[place])
                    for place, one in enumerate(trajectories)
                ]
            elif rank() == 0:
                logger.warning(
                    "the gold judge '%s' (further_judges.%s) failed at this validation, which lacks its "
                    "curves; the training goes on: %s",
                    name,
                    name,
                    failures[0],
                )
        return answers


def _runner(training: JudgeRunner, judge: Judge) -> JudgeRunner:
    """A runner with the settings of the training judge's, and a separate budget with the same limits."""
    runner = training.for_judge(judge)
    runner.budget = training.budget.unspent()
    return runner


def _waited(asked: Mapping[int, Future[Judged]], is_first: bool) -> tuple[dict[int, Judged], list[str]]:
    """Returns the judgements by place, and why others are missing.

    Raises:
        ConfigError: at the first validation, no call can ever succeed.
    """
    judged: dict[int, Judged] = {}
    failures: list[str] = []
    for place, future in asked.items():
        try:
            judged[place] = future.result()
        except JudgeStop as error:
            failures.append(str(error))
        except ConfigError as error:
            if is_first:
                raise
            failures.append(str(error))
    return judged, failures


def _watched(runner: JudgeRunner, judged: list[Judged]) -> list[str]:
    """Adds up usage and abstentions; returns why the judge fails too often, if it does."""
    try:
        runner.watch(judged)
        if judged and not any(one.has_reward for one in judged):
            runner.check_judged()
    except JudgeStop as error:
        return [str(error)]
    return []
