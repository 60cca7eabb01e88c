"""Stage 12: HerlModule owns the policy and turns a batch of prompts into optimizer steps.

    training_step(prompts) = collect (stages 2-8) -> k optimizer steps (stages 9-11) -> report, Step

Optimization is manual: the groups of a rollout batch are split over `updates_per_batch` optimizer steps, each
divided into micro-batches by a token budget. Every rank has the whole batch. Callbacks get a `Step` for each
batch and a `HeldOut` for each validation batch (`herl.callbacks.HerlCallback`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.trainer.states import TrainerFn
from transformers import PreTrainedModel

from herl.advantages import Advantages, group_advantages
from herl.bonus import BonusReward, NoBonus
from herl.clock import PhaseClock
from herl.distributed import together
from herl.environment import Environment, NoEnvironment
from herl.environment.runner import EnvironmentRunner
from herl.errors import ConfigError
from herl.hindsight import HindsightBuilder, NoHindsight
from herl.hindsight.gate import gated
from herl.hindsight.teacher import NO_TEACHER, Teacher
from herl.judge import Judge, JudgeRunner, needs_verdicts
from herl.metrics.collection import collection_counts
from herl.metrics.heldout import heldout_metrics
from herl.metrics.report import log_to_lightning
from herl.metrics.step import Step, measured
from herl.models.fsdp import check_trainer, load
from herl.models.lora import has_adapters
from herl.models.pretrained import PretrainedModel
from herl.models.weights import misfit, named_weights
from herl.replay import NoReplay, Replay
from herl.rollout.ahead import Collector
from herl.rollout.collect import Collection
from herl.rollout.run_state import restore, run_state, saved_state
from herl.rollout.stages import RolloutPlan, Selection, Stages
from herl.rollout.validate import HeldOut, check_validation, validate
from herl.sampler import Sampler
from herl.selection import form_group
from herl.types import Task
from herl.update.batch import Packing
from herl.update.card_needs import run_limits
from herl.update.loss.base import Loss
from herl.update.loss.policy import PolicyLoss
from herl.update.schedule import Schedule, run_share
from herl.update.scorer import Scorer
from herl.update.updater import ADAMW, Optimizer, Updater


class HerlModule(L.LightningModule):
    """Policy-gradient training on rubric rewards, with hindsight experience.

    Args:
        model: The policy, and the reference if one is needed.
        sampler: Draws answers (stage 2).
        judge: Judges them (stage 3).
        hindsight: Writes revision prompts (stage 4).
        environment: Replies to answers, which then take several turns (stage 2).
        bonus: Pays attempts for their potential (stage 5).
        replay: Adds good answers of earlier batches, between stages 5 and 6.
        teacher: Scores attempts under the criteria, for an advantage of each token (stages 8 and 10).
        selection: `herl.selection.form_group` with its options (stage 6).
        advantages: `herl.advantages.group_advantages` with its options (stage 7).
        loss: The loss (stage 11).
        rollout: The number of answers, how they are drawn, and the context they are trained under.
        hindsight_gate: `herl.hindsight.gate.gated` with its options: when and which groups are revised.
        judge_runner: `herl.judge.JudgeRunner` with its options.
        optimizer: Makes an optimizer from parameters.
        schedule: Learning-rate schedule over the run, after the warm-up.
        warmup_steps: Optimizer steps over which the learning rate rises from 0.
        updates_per_batch: Optimizer steps per rollout batch.
        micro_batch_tokens: Tokens per row, which is one forward pass. Affects memory and speed, never the
            result. `auto` is 8192 on a CPU, and as many as fit in memory on a GPU (`herl.update.row_tokens`).
        packing: The contents of a row (`herl.update.batch.Packing`); `auto` is the best the model allows.
        max_skipped_steps: Maximum number of steps in a row skipped because loss or gradient is not finite.
        max_grad_norm: Gradients are clipped to this norm; None for no clipping.
        validation_attempts: Plain attempts per held-out prompt. More attempts only reduce the noise.
        validation_revisions: Maximum number of revisions of each, reported beside the plain attempts.
        log_over: The x axis of all curves: sampled answers or tokens, revisions included, or optimizer steps.
        seed: All randomness is derived from hashes of it.
    """

    def __init__(
        self,
        model: PretrainedModel,
        sampler: Sampler,
        judge: Judge,
        hindsight: HindsightBuilder | None = None,
        environment: Environment | None = None,
        bonus: BonusReward | None = None,
        replay: Replay | None = None,
        teacher: Teacher = NO_TEACHER,
        selection: Selection = form_group,
        advantages: Advantages = group_advantages,
        loss: Loss | None = None,
        rollout: RolloutPlan | None = None,
        hindsight_gate: Callable[[HindsightBuilder], HindsightBuilder] = gated,
        judge_runner: Callable[..., JudgeRunner] = JudgeRunner,
        optimizer: Optimizer = ADAMW,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        updates_per_batch: int = 2,
        micro_batch_tokens: int | Literal["auto"] = "auto",
        packing: Packing | Literal["auto"] = "auto",
        max_grad_norm: float | None = 1.0,
        max_skipped_steps: int = 3,
        validation_attempts: int = 1,
        validation_revisions: int = 0,
        log_over: Literal["answers_sampled", "tokens_sampled", "optimizer_steps"] = "answers_sampled",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.loss = model, loss or PolicyLoss()
        self.validation_revisions = validation_revisions
        self._validate = partial(
            validate, seed=seed, attempts=validation_attempts, revisions=validation_revisions
        )
        self.log_over, self.seed = log_over, seed
        self._lasting = {"seed": seed, "module.log_over": log_over, **model.lasting()}  # when resumed
        hindsight = hindsight_gate(hindsight or NoHindsight())
        environment = environment or NoEnvironment()
        self.stages = Stages(
            tokenizer=model.tokenizer(),
            sampler=sampler,
            judge_runner=judge_runner(judge, needs_verdicts=needs_verdicts(hindsight, advantages, teacher)),
            plan=(rollout or RolloutPlan()).within(model.max_tokens(), environment),
            selection=selection,
            advantages=advantages,
            hindsight=hindsight,
            bonus=bonus or NoBonus(),
            replay=replay or NoReplay(),
            teacher=teacher,
            environment_runner=EnvironmentRunner(environment),
        )
        self.updater = Updater(
            self.loss,
            self.stages.plan.attempt,
            teacher,
            optimizer=optimizer,
            updates_per_batch=updates_per_batch,
            micro_batch_tokens=micro_batch_tokens,
            packing=packing,
            schedule=schedule,
            warmup_steps=warmup_steps,
            max_grad_norm=max_grad_norm,
            max_skipped_steps=max_skipped_steps,
        )
        self.updater.check(self.stages, adapters=model.lora is not None)
        check_validation(validation_attempts, validation_revisions, self.stages)
        self.policy: PreTrainedModel | None = None
        self.trains = True  # False for a run that only evaluates
        self.counts: Counter[str] = Counter()
        self.clock = PhaseClock()
        self._heldout: list[HeldOut] = []  # batches of the current validation

    # Set-up

    def configure_model(self) -> None:
        """Loads the policy, and a reference if the loss needs a second model. Safe to call again."""
        if self.policy is not None:
            return
        check_trainer(self.trainer, self.model)
        with torch.device("cpu"):  # Lightning defaults to the GPU here, and moves the model itself
            self.policy = load(self.model, self.trainer).train()
            if self.loss.needs_reference and not has_adapters(self.policy):
                self.updater.hold_reference(self, load(self.model, self.trainer, learns=False))
            together(lambda: self.stages.sampler.prepare(run_limits(self, trains=self.trains)))
            together(partial(self.stages.sampler.start, self.policy, self.stages.tokenizer))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Builds the optimizer. Its learning rate is set before each step from the run's progress."""
        return self.updater.optimizer_of(self.parameters())

    def configure_callbacks(self) -> list[L.Callback]:
        """Adds a callback that ends the threads after an error, when Lightning does not tear down."""
        return [LambdaCallback(on_exception=lambda trainer, module, error: module.teardown(trainer.state.fn))]

    def setup(self, stage: str) -> None:
        """Opens judge and environment, and agrees on the run's date."""
        data = getattr(self.trainer, "datamodule", None)
        self.collector = Collector(self.stages, self.clock, data)
        self.stages.open(data, trains=stage == "fit")

    def teardown(self, stage: str) -> None:
        """Closes judge and environment."""
        self.stages.close()

    def on_fit_start(self) -> None:
        """Moves the reference to the policy's device, and makes the collector ready."""
        self.updater.place_reference(self.device)
        self.collector.open(self.trainer, corrected=not self.loss.needs_on_policy)

    def on_train_end(self) -> None:
        """Checks that something could be sampled and judged."""
        self.counts.update(self.collector.left_over())
        self.stages.check_outcome(self.counts)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the policy's weights one by one, in the form its sampler loads."""
        policy, sampler = cast(PreTrainedModel, self.policy), self.stages.sampler
        return named_weights(policy, sampler.weights_dtype, checkpoint=sampler.checkpoint_names)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state that a resumed run needs."""
        checkpoint["herl"] = run_state(self.collector, self.counts, self._lasting)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores that state.

        Raises:
            ConfigError: the tokenizer, the chat template or a setting that must not change differs, or herl
                did not write the checkpoint.
        """
        state = saved_state(checkpoint, self.stages, self.model, reference=hasattr(self, "reference"))
        self.counts = Counter(state["counts"])
        if self.trainer.state.fn == TrainerFn.FITTING:  # not in the validation before training
            restore(self.collector, state, self._lasting)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads a checkpoint's weights.

        Raises:
            ConfigError: they are those of another model, and `strict`.
        """
        if strict and (wrong := misfit(self.state_dict(), state_dict)):
            raise ConfigError(
                f"model: expected the model of the checkpoint, with its adapters, got weights {wrong}"
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    # Training

    def training_step(self, tasks: list[Task], batch_idx: int) -> dict[str, Step]:
        """Runs stages 2 to 12 for one batch of prompts; returns {"step": its record}, for callbacks."""
        assert self.policy is not None
        key = (self.seed, self.current_epoch, batch_idx)
        collection = self.collector.collect(tasks, key, self.share_done(batch_idx))
        share = self.share_done(batch_idx + 1, collection)
        with self.collector.during_update(key, share), self.clock.time("update"):
            update = self.updater.update(self, self.policy, collection.experiences, self.counts)
        self.counts.update(collection_counts(collection))
        step = measured(
            collection, update, self.policy, self.counts, epoch=self.current_epoch, seconds=self.clock.lap()
        )
        self._report(step.metrics)
        return {"step": step}

    def scorer(self) -> Scorer:
        """Returns a scorer, which computes log-probs and losses, for the current models."""
        assert self.policy is not None
        return self.updater.scorer(self.policy, self.device)

    def share_done(self, batches: int, last: Collection | None = None) -> float:
        """Returns the share of the run done, in [0, 1], after these batches of the epoch, `last` included."""
        counts = self.counts + Counter(collection_counts(last) if last else {})
        return run_share(self.trainer, batches, counts, self.updater.steps(last.experiences) if last else 0)

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Clears the previous validation."""
        self._heldout = []

    def validation_step(self, tasks: list[Task], batch_idx: int) -> dict[str, HeldOut]:
        """Attempts held-out prompts and revises the answers, with the same random numbers every time; returns
        {"heldout": the results}, for callbacks."""
        heldout = self._validate(tasks, self.stages, clock=self.clock)
        self._heldout.append(heldout)
        return {"heldout": heldout}

    def on_validation_epoch_end(self) -> None:
        """Reports the validation: plain attempts, and the best answer after each revision."""
        metrics = heldout_metrics(self._heldout, self.validation_revisions)
        self._report(metrics | {"time/validate": sum(self.clock.lap().values())})

    def on_validation_end(self) -> None:
        """Checks that something could be judged, after callbacks have kept the answers."""
        self.stages.judge_runner.check_judged()

    # Reports

    def _report(self, metrics: Mapping[str, float]) -> None:
        log_to_lightning(self, metrics)
        self.record(metrics)

    def record(self, metrics: Mapping[str, float]) -> None:
        """Writes metrics to the loggers, over `log_over`."""
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step=self.counts[self.log_over])
