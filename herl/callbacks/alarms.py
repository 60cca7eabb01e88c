"""Warns when a run is going wrong: the policy collapses, or there is nothing left to learn from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from herl.callbacks.base import HerlCallback
from herl.callbacks.gold_judges import GoldJudges
from herl.errors import TrainingError, check_at_least
from herl.metrics.gold import errors_by_chance
from herl.metrics.step import Step
from herl.module import HerlModule
from herl.rollout.improve import Trajectory
from herl.trainer_callbacks import callbacks_of

logger = logging.getLogger(__name__)

LOWER_RATE = (
    ". The policy moves too far in a batch: lower optimizer.lr (usual for 0.5B to 7B: 1e-6 for all weights, "
    "1e-5 for LoRA), or raise module.warmup_steps"
)
UNFINISHED = {
    "episodes/failed": "most because the environment raised an error, of which the log shows the first",
    "episodes/cut_by_turns": "most at the limit on turns: raise environment.max_turns",
    "episodes/cut_by_length": (
        "most at a limit on tokens: raise environment.max_tokens, of all turns, or "
        "rollout.attempt.max_new_tokens, of one"
    ),
    "episodes/cut_by_seconds": "most at the limit on seconds: raise environment.max_seconds",
}
"""What ends an episode before its time, by the curve that counts it, and what to change."""
MIN_PROMPTS = 8
"""Held-out prompts below which the standard error itself is too uncertain for an alarm."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What one alarm watches."""

    curves: tuple[str, ...]
    """Metrics whose sum is watched."""
    value: float | None
    """None for an alarm that is off."""
    side: Literal["above", "below"]
    """Where a broken limit's values are."""
    patience: int
    """Batches in a row that must break the limit."""
    advice: str = ""
    advice_by_curve: Mapping[str, str] = field(default_factory=dict)
    """More advice, by the curve that is largest."""

    def told(self, values: Mapping[str, float]) -> str:
        """Returns what to do about these values of the curves."""
        largest = max(values, key=lambda curve: values[curve])
        said = self.advice_by_curve.get(largest)
        return f"{self.advice}, {said}" if said else self.advice

    def is_broken(self, got: float) -> bool:
        """Whether a value lies on the wrong side. NaN lies on neither."""
        assert self.value is not None
        return got > self.value if self.side == "above" else got < self.value


class Alarms(HerlCallback):
    """Watches metrics of the training batches; None switches a limit off.

    One step that is much too large can ruin a policy, so `kl_to_old_above` needs no patience. Any other
    alarm goes off once a limit has been broken for `patience` batches in a row, and rearms when the limit
    is met again. It is logged as a warning and counted in `progress/alarms_<name>`.

    With gold judges (`further_judges`), validations are watched too. The gap is the training judge's reward
    minus a gold judge's, for the same held-out answers. What counts is how far it has opened since the first
    validation, prompt by prompt. So that noise of few prompts is no alarm, the opening must also exceed what
    Gaussian noise alone exceeds once in a thousand validations, over all gold judges: with one judge, 4.8 of
    its standard errors over 8 prompts, and 3.3 over 48 (`herl.metrics.gold.errors_by_chance`; the curve
    `gaming/opened_error` is that error). All validations are compared with the same first one, so the few
    false alarms come together in some runs. With fewer than eight prompts there is no alarm, and a warning at
    the first validation says so.

    Args:
        entropy_below: Mean entropy of the policy's tokens, in nats.
        truncated_above: Share of attempts cut off at the token limit.
        identical_above: Share of groups in which all attempts are the same.
        zero_signal_above: Share of groups that carry no gradient.
        kl_above: KL to the reference policy, in nats per token, for losses that use a reference.
        kl_to_old_above: KL to the policy before the batch, in nats per token. Healthy runs stay below 0.1.
        unfinished_above: Share of attempts that an environment failed or a limit cut off, in runs with an
            environment.
        clipped_above: Share of the tokens whose gradient the loss clips, in both directions.
        gap_above: How far the gap between the training judge and any gold judge may open, in units of the
            reward; one validation is enough.
        patience: Batches in a row that must break a limit.
        stop: Whether an alarm ends the run with an error.
    """

    def __init__(
        self,
        entropy_below: float | None = 0.01,
        truncated_above: float | None = 0.95,
        identical_above: float | None = 0.9,
        zero_signal_above: float | None = 0.95,
        kl_above: float | None = 10.0,
        kl_to_old_above: float | None = 1.0,
        clipped_above: float | None = 0.3,
        patience: int = 5,
        stop: bool = False,
        gap_above: float | None = 0.1,
        unfinished_above: float | None = 0.5,
    ) -> None:
        check_at_least("callbacks.alarms", 1, patience=patience)
        clips = ("update/clip_fraction_low", "update/clip_fraction_high")
        self.limits = {
            "entropy": Limit(("update/entropy",), entropy_below, "below", patience),
            "truncated": Limit(("train/truncated",), truncated_above, "above", patience),
            "identical": Limit(("train/identical_groups",), identical_above, "above", patience),
            "zero_signal": Limit(("train/zero_signal_groups",), zero_signal_above, "above", patience),
            "kl": Limit(("update/kl_to_reference",), kl_above, "above", patience),
            "kl_to_old": Limit(("update/kl_to_old",), kl_to_old_above, "above", 1, LOWER_RATE),
            "unfinished": Limit(
                tuple(UNFINISHED), unfinished_above, "above", patience, advice_by_curve=UNFINISHED
            ),
            "clipped": Limit(clips, clipped_above, "above", patience, LOWER_RATE),
        }
        check_at_least("callbacks.alarms", 0, gap_above=gap_above)
        self.gap_above = gap_above
        self.stop = stop
        self._told_of_few = False
        self.broken: dict[str, int] = {}

    def state_dict(self) -> dict[str, int]:
        """Returns how many batches in a row each limit has been broken."""
        return dict(self.broken)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restores the counts."""
        self.broken = dict(state_dict)

    def on_step(self, trainer: L.Trainer, module: HerlModule, step: Step) -> None:
        for name, limit in self.limits.items():
            values = {curve: step.metrics[curve] for curve in limit.curves if curve in step.metrics}
            if limit.value is None or not values:
                continue
            total = sum(values.values())
            self.broken[name] = self.broken.get(name, 0) + 1 if limit.is_broken(total) else 0
            if self.broken[name] != limit.patience:
                continue
            module.counts[f"alarms_{name}"] += 1
            span = "in a batch" if limit.patience == 1 else f"for {limit.patience} batches in a row"
            message = (
                f"alarm: {' + '.join(limit.curves)} was {limit.side} {limit.value:g} {span}, "
                f"now {total:.4g} (callbacks.alarms.{name}_{limit.side}){limit.told(values)}"
            )
            self._sound(trainer, message)

    def on_heldout(
        self, trainer: L.Trainer, module: HerlModule, trajectories: tuple[Trajectory, ...]
    ) -> None:
        gold = next(iter(callbacks_of(trainer, GoldJudges)), None)
        if gold is None or self.gap_above is None:
            return
        self._tell_if_few(trainer, len({one.task.id for one in trajectories}))
        beyond = {
            name: one
            for name, one in gold.openings.items()
            if one.prompts >= MIN_PROMPTS
            and one.is_beyond(self.gap_above, errors_by_chance(one.prompts, len(gold.judges)))
        }
        self.broken["gap"] = self.broken.get("gap", 0) + 1 if beyond else 0
        if self.broken["gap"] != 1:
            return
        module.counts["alarms_gap"] += 1
        name, widest = max(beyond.items(), key=lambda one: one[1].change)
        self._sound(
            trainer,
            f"alarm: the reward of the training judge has risen {widest.change:.3g} more than that of the "
            f"gold judge '{name}' since the first validation (standard error {widest.error:.2g} over "
            f"{widest.prompts} prompts), after {module.counts['optimizer_steps']} optimizer steps and "
            f"{module.counts['answers_sampled']} answers (callbacks.alarms.gap_above). The policy may be "
            "learning to please the judge: read the answers that it likes best (herl inspect RUN order=best) "
            f"and the curves gaming_criterion. callbacks.best_checkpoint.monitor=gold/{name}/reward keeps "
            "the policy that the gold judge likes best",
        )

    def _tell_if_few(self, trainer: L.Trainer, prompts: int) -> None:
        if prompts >= MIN_PROMPTS or self._told_of_few:
            return
        self._told_of_few = True
        if trainer.is_global_zero:
            logger.warning(
                "the alarm of further_judges (callbacks.alarms.gap_above) cannot go off: it needs at least "
                "%d held-out prompts, since the noise of fewer is too uncertain, and a validation has %d",
                MIN_PROMPTS,
                prompts,
            )

    def _sound(self, trainer: L.Trainer, message: str) -> None:
        if self.stop and trainer.state.fn == TrainerFn.FITTING:
            raise TrainingError(message)
        if trainer.is_global_zero:
            logger.warning(message)
