"""Stage 12: HerlModule owns policy and reference and turns a batch of prompts into optimiser steps.

    training_step(prompts) = collect (stages 2-8) -> k optimiser steps (stages 9-11) -> report

Optimisation is manual: one rollout batch is split by whole groups into `updates_per_batch` optimiser steps,
each of them cut into micro-batches by a budget of tokens. Left out here: several processes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import lightning as L
import torch
from transformers import PreTrainedModel

from herl.advantages import group_advantages
from herl.batch import MicroBatch, micro_batches, split_by_group
from herl.bonus import BonusReward, NoBonus
from herl.clock import PhaseClock
from herl.errors import ConfigError, TrainingError
from herl.experience import (
    Advantages,
    Collection,
    RolloutPlan,
    Selection,
    Stages,
    collect,
    render,
    sample_and_judge,
)
from herl.hindsight import HindsightBuilder, NoHindsight
from herl.judge import Judge, JudgeDesk
from herl.logprobs import answer_logprobs
from herl.loss import PolicyLoss, Stats, Tokens
from herl.metrics.rubric import RubricMetrics, collection_metrics
from herl.metrics.running import RunningMeans
from herl.model import PretrainedModel
from herl.sampler import Sampler
from herl.seeds import derive_seed
from herl.selection import form_group
from herl.types import Experience, SampleRequest, Task

Optimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
Schedule = Literal["constant", "linear", "cosine"]
ADAMW: Optimizer = partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.01)


class HerlModule(L.LightningModule):
    """Policy-gradient training on rubric rewards, with hindsight experience.

    Args:
        model: The policy, and the reference where one is needed.
        sampler: Draws answers (stage 2).
        judge: Judges them (stage 3).
        hindsight: Writes revision prompts (stage 4).
        bonus: Pays attempts for their potential (stage 5).
        selection: `herl.selection.form_group` with its options (stage 6).
        advantages: `herl.advantages.group_advantages` with its options (stage 7).
        loss: Stage 11.
        rollout: How many answers are drawn, how, and what they are trained under.
        judge_desk: `herl.judge.JudgeDesk` with its options.
        optimizer: Parameters -> optimizer.
        schedule: Course of the learning rate over the run, after the warm-up.
        warmup_steps: Optimiser steps over which the learning rate rises from 0.
        updates_per_batch: Optimiser steps per rollout batch.
        micro_batch_tokens: Padded tokens per forward pass. Changes memory and speed, never the result.
        max_grad_norm: Gradients are clipped to this norm; None for no clipping.
        validation_attempts: Plain attempts per held-out prompt. More only lower the noise.
        seed: All random choices are hashes of it.
    """

    def __init__(
        self,
        model: PretrainedModel,
        sampler: Sampler,
        judge: Judge,
        hindsight: HindsightBuilder | None = None,
        bonus: BonusReward | None = None,
        selection: Selection = form_group,
        advantages: Advantages = group_advantages,
        loss: PolicyLoss | None = None,
        rollout: RolloutPlan | None = None,
        judge_desk: Callable[[Judge], JudgeDesk] = JudgeDesk,
        optimizer: Optimizer = ADAMW,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        updates_per_batch: int = 2,
        micro_batch_tokens: int = 8192,
        max_grad_norm: float | None = 1.0,
        validation_attempts: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        for name, value in (
            ("updates_per_batch", updates_per_batch),
            ("micro_batch_tokens", micro_batch_tokens),
            ("validation_attempts", validation_attempts),
        ):
            if value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}")
        self.model = model
        self.loss = loss or PolicyLoss()
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.updates_per_batch = updates_per_batch
        self.micro_batch_tokens = micro_batch_tokens
        self.max_grad_norm = max_grad_norm
        self.validation_attempts = validation_attempts
        self.seed = seed
        self.stages = Stages(
            tokenizer=model.tokenizer(),
            sampler=sampler,
            desk=judge_desk(judge),
            plan=rollout or RolloutPlan(),
            selection=selection,
            advantages=advantages,
            hindsight=hindsight or NoHindsight(),
            bonus=bonus or NoBonus(),
        )
        self.policy: PreTrainedModel | None = None
        # In a tuple, so that Lightning neither registers nor saves it.
        self._reference: tuple[PreTrainedModel, ...] = ()
        self.counts: Counter[str] = Counter()
        self.clock = PhaseClock()
        self.heldout = RubricMetrics()
        self.example: tuple[str, str] | None = None  # first held-out request and the last answer to it

    # Set-up

    def configure_model(self) -> None:
        """Loads the policy, and the reference only if the loss has a KL term. Safe to call again."""
        if self.policy is not None:
            return
        require_one_process(self.trainer)
        if self.trainer.precision == "16-mixed":
            raise ConfigError(
                "trainer.precision: expected '32-true' or 'bf16-mixed', got '16-mixed', whose scaled "
                "gradients would be clipped at the wrong norm"
            )
        self.policy = self.model.load().train()
        if self.loss.kl_coef > 0:
            self._reference = (self.model.load().eval().requires_grad_(False),)
        self.stages.sampler.start(self.policy, self.stages.tokenizer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Builds the optimizer. Its learning rate is set before each step, from the run's progress."""
        return self.optimizer(self.parameters())

    def setup(self, stage: str) -> None:
        """Opens the judge desk."""
        self.stages.desk.__enter__()

    def teardown(self, stage: str) -> None:
        """Closes the judge desk."""
        self.stages.desk.__exit__(None, None, None)

    def on_fit_start(self) -> None:
        """Moves the reference, which Lightning does not know, to the policy's device."""
        for reference in self._reference:
            cast(torch.nn.Module, reference).to(self.device)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the policy's weights one by one, as its sampler loads them."""
        assert self.policy is not None
        yield from ((name, tensor.detach()) for name, tensor in self.policy.named_parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counts, so that a resumed run goes on counting."""
        checkpoint["herl"] = {"counts": dict(self.counts), "seconds": dict(self.clock.seconds)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the counts back."""
        self.counts = Counter(checkpoint["herl"]["counts"])
        self.clock.add(checkpoint["herl"]["seconds"])

    # Training

    def training_step(self, tasks: list[Task], batch_idx: int) -> None:
        """Runs stages 2 to 12 for one batch of prompts."""
        collection = collect(tasks, self.stages, (self.seed, self.current_epoch, batch_idx))
        self.clock.add(collection.seconds)
        with self.clock.time("update"):
            update_metrics = self._update(collection.experiences)
        self._count(collection)
        self._report(collection_metrics(collection) | update_metrics)

    def _update(self, experiences: Sequence[Experience]) -> dict[str, float]:
        """Takes the optimiser steps of a rollout batch; returns the means of their statistics."""
        assert self.policy is not None
        self.policy.train()
        means = RunningMeans()
        parts = split_by_group(experiences, self.updates_per_batch)
        # Before the first step the current log-probs are the old ones: that part needs no extra pass.
        old = [None if i == 0 else self._old_logprobs(part) for i, part in enumerate(parts)]
        for part, old_logprobs in zip(parts, old, strict=True):
            self._optimizer_step(part, old_logprobs, means)
        return {f"update/{name}": value for name, value in means.compute().items()}

    def _optimizer_step(
        self,
        experiences: Sequence[Experience],
        old_logprobs: Sequence[torch.Tensor] | None,
        means: RunningMeans,
    ) -> None:
        """Takes one optimiser step over these experiences."""
        optimizer = cast(torch.optim.Optimizer, self.optimizers())
        rate = self._scheduled_rate()
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate
        total = 0.0
        for batch in self._micro_batches(experiences, old_logprobs):
            loss, stats = self._loss(batch.to(self.device))
            self.manual_backward(loss)
            total += float(loss.detach())
            for name, (value, count) in stats.items():
                means.add_sum(name, value, count)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.max_grad_norm or math.inf)
        if not math.isfinite(float(norm)):
            raise TrainingError(
                f"the gradient norm of optimiser step {self.counts['optimizer_steps']} is {float(norm)}: "
                "expected a finite number. Lower optimizer.lr, or train in float32"
            )
        optimizer.step()
        optimizer.zero_grad()
        self.counts["optimizer_steps"] += 1
        means.add("loss", total)
        means.add("grad_norm", norm)
        means.add("learning_rate", optimizer.param_groups[0]["lr"])

    def _loss(self, batch: MicroBatch) -> tuple[torch.Tensor, Stats]:
        """Returns the loss of a micro-batch, with gradient, and its statistics."""
        assert self.policy is not None
        temperature = self.stages.plan.attempt.temperature
        logprobs, entropy = answer_logprobs(
            self.policy, batch, temperature, entropy_grad=self.loss.entropy_coef != 0
        )
        ref_logprobs = None
        for reference in self._reference:
            with torch.no_grad():
                ref_logprobs, _ = answer_logprobs(reference, batch, temperature)
        old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        return self.loss(
            Tokens(
                logprobs=logprobs,
                entropy=entropy,
                old_logprobs=old,
                sampler_logprobs=batch.sampler_logprobs,
                advantage=batch.advantage,
                weight=batch.weight,
                revision=batch.revision,
                row=batch.row,
                ref_logprobs=ref_logprobs,
            )
        )

    @torch.no_grad()
    def _old_logprobs(self, experiences: Sequence[Experience]) -> list[torch.Tensor]:
        """The current log-probs of each experience under its training context, [answer_len] each."""
        assert self.policy is not None
        found: dict[int, torch.Tensor] = {}
        for batch in self._micro_batches(experiences, None):
            logprobs, _ = answer_logprobs(
                self.policy, batch.to(self.device), self.stages.plan.attempt.temperature
            )
            lengths = batch.answer_mask.sum(1).tolist()
            found.update(zip(batch.rows, torch.split(logprobs.cpu(), lengths), strict=True))
        return [found[place] for place in range(len(experiences))]

    def _micro_batches(
        self, experiences: Sequence[Experience], old_logprobs: Sequence[torch.Tensor] | None
    ) -> Iterator[MicroBatch]:
        return micro_batches(
            experiences,
            max_tokens=self.micro_batch_tokens,
            aggregation=self.loss.aggregation,
            constant_length=self.loss.constant_length,
            old_logprobs=old_logprobs,
        )

    def _scheduled_rate(self) -> float:
        """Share of the full learning rate at this point of the run, a function of nothing but the point.

        The run ends at the trainer's max_epochs or max_steps; an answer budget is not looked at.
        """
        trainer = self.trainer
        done = self.current_epoch + trainer.fit_loop.batch_idx / trainer.num_training_batches
        epochs = trainer.max_epochs or 0
        by_epoch = done / epochs if epochs > 0 else 0.0
        by_step = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
        step = self.counts["optimizer_steps"]
        return learning_rate_share(self.schedule, step, self.warmup_steps, max(by_epoch, by_step))

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Starts with empty metrics, made under the gradient mode that they are used in."""
        self.heldout = RubricMetrics()

    def validation_step(self, tasks: list[Task], batch_idx: int) -> None:
        """One plain attempt per held-out prompt, with the same random numbers every time."""
        plan = self.stages.plan
        requests = [
            SampleRequest(
                task_id=task.id,
                group_id=f"heldout:{task.id}",
                prompt_ids=render(self.stages.tokenizer, task.messages),
                n=self.validation_attempts,
                sampling=plan.attempt,
                seed=derive_seed(self.seed, task.id, "heldout"),
            )
            for task in tasks
        ]
        judged = sample_and_judge(self.stages, tasks, requests, self.clock, "validate")
        if batch_idx == 0:
            self.example = tasks[0].request, judged[tasks[0].id][0].rollout.text
        for task in tasks:
            for one in judged[task.id]:
                self.heldout.update(task, one)

    def on_validation_epoch_end(self) -> None:
        """Reports the epoch of validation."""
        self._report(self.heldout.compute())

    # Reports

    def _count(self, collection: Collection) -> None:
        self.counts["prompts"] += len(collection.groups)
        for group in collection.groups:
            answers = (*group.attempts, *group.revisions)
            self.counts["answers_sampled"] += len(answers)
            self.counts["revisions_sampled"] += len(group.revisions)
            self.counts["tokens_sampled"] += sum(len(one.rollout.token_ids) for one in answers)

    def _report(self, metrics: Mapping[str, float]) -> None:
        """Logs metrics over the number of sampled answers: the budget that methods are compared at."""
        shown = ("train/reward", "heldout/reward", "hindsight/reward")
        for name, value in metrics.items():
            self.log(name, value, logger=False, prog_bar=name in shown, batch_size=1)
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step=self.counts["answers_sampled"])


def require_one_process(trainer: L.Trainer) -> None:
    """Refuses what would be wrong in silence: normalisation over ranks is not there yet.

    Raises:
        ConfigError: the trainer would run more than one process.
    """
    if trainer.world_size > 1:
        raise ConfigError(f"trainer.devices: expected one process, got {trainer.world_size}")


def learning_rate_share(schedule: Schedule, step: int, warmup_steps: int, progress: float) -> float:
    """Returns the share of the full learning rate, in [0, 1].

    Args:
        schedule: Course after the warm-up: constant, or down to 0 at the end of the run.
        step: Optimiser steps taken so far.
        warmup_steps: Steps over which the rate rises linearly.
        progress: Share of the run that is done, in [0, 1].
    """
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    left = 1.0 - min(1.0, max(0.0, progress))
    course = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1.0 - math.cos(math.pi * left))}
    return warm * course[schedule]
