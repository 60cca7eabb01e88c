"""Stage 12: HerlModule owns policy and reference and turns a batch of prompts into optimiser steps.

    training_step(prompts) = collect (stages 2-8) -> k optimiser steps (stages 9-11) -> report

Optimisation is manual: one rollout batch is split by whole groups into `updates_per_batch` optimiser steps,
each of them cut into micro-batches by a budget of tokens. On several ranks every rank knows the whole batch;
the micro-batches of a step are dealt out, and gradients and numbers are those of the whole step.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from herl.advantages import group_advantages
from herl.batch import Packing, split_by_group
from herl.bonus import BonusReward, NoBonus
from herl.clock import PhaseClock
from herl.distributed import gather, together, world_size
from herl.errors import ConfigError, TrainingError
from herl.experience import (
    Advantages,
    Collection,
    RolloutPlan,
    Selection,
    Stages,
    collect,
    render_all,
)
from herl.hindsight import HindsightBuilder, NoHindsight
from herl.judge import Judge, JudgeDesk
from herl.lora import has_adapters
from herl.loss import PolicyLoss
from herl.metrics.rubric import RubricMetrics, collection_metrics
from herl.metrics.running import RunningStats
from herl.model import PretrainedModel
from herl.packing import choose_packing
from herl.rollouts import sample_and_judge
from herl.sampler import Sampler
from herl.schedule import Schedule, learning_rate_share
from herl.scoring import Scorer
from herl.seeds import derive_seed
from herl.selection import form_group
from herl.sharding import FSDPStrategy, check_trainer, load_sharded
from herl.types import Experience, SampleRequest, Task
from herl.weights import is_sharded, named_weights, whole

Optimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
ADAMW: Optimizer = partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.01, fused=True)


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
        micro_batch_tokens: Tokens per forward pass. Changes memory and speed, never the result.
        packing: What stands in a row (`herl.batch.Packing`); `auto` for the best that the model allows.
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
        packing: Packing | Literal["auto"] = "auto",
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
        self.packing = packing
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
        self.collection: Collection | None = None  # of the last step

    # Set-up

    def configure_model(self) -> None:
        """Loads the policy, and a reference only if the loss needs a second model. Safe to call again."""
        if self.policy is not None:
            return
        check_trainer(self.trainer)
        with torch.device("cpu"):  # Lightning makes the GPU the default here, and moves the model itself
            self.policy = self._load(self.model).train()
            if self.loss.kl_coef > 0 and not has_adapters(self.policy):
                self._reference = (self._load(self.model).eval().requires_grad_(False),)
            policy = self.policy
            together(lambda: self.stages.sampler.start(policy, self.stages.tokenizer))

    def _load(self, model: PretrainedModel) -> PreTrainedModel:
        strategy = self.trainer.strategy
        if not isinstance(strategy, FSDPStrategy):
            return together(model.load)
        return load_sharded(
            model,
            strategy.device_mesh["data_parallel"],
            bf16=self.trainer.precision == "bf16-mixed",
            cpu_offload=strategy.cpu_offload,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Builds the optimizer. Its learning rate is set before each step, from the run's progress."""
        optimizer = self.optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]  # a sharded checkpoint brings back only what is there already
        return optimizer

    def setup(self, stage: str) -> None:
        """Opens the judge desk."""
        together(self.stages.desk.open)

    def teardown(self, stage: str) -> None:
        """Closes the judge desk."""
        self.stages.desk.close()

    def on_fit_start(self) -> None:
        """Moves the reference, which Lightning does not know, to the policy's device."""
        for reference in self._reference:
            if not is_sharded(reference):
                cast(torch.nn.Module, reference).to(self.device)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the policy's weights one by one, as its sampler loads them."""
        assert self.policy is not None
        return named_weights(self.policy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counts, so that a resumed run goes on counting."""
        counted = {"counts": dict(self.counts), "judge": self.stages.desk.state_dict()}
        checkpoint["herl"] = counted | {"seconds": dict(self.clock.seconds)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the counts back."""
        self.counts = Counter(checkpoint["herl"]["counts"])
        if self.trainer.state.fn == TrainerFn.FITTING:  # the validation before it loads it too
            self.clock.add(checkpoint["herl"]["seconds"])
            self.stages.desk.load_state_dict(checkpoint["herl"]["judge"])

    # Training

    def training_step(self, tasks: list[Task], batch_idx: int) -> None:
        """Runs stages 2 to 12 for one batch of prompts."""
        version = self.counts["optimizer_steps"]
        key = (self.seed, self.current_epoch, batch_idx)
        self.collection = collection = collect(tasks, self.stages, key)
        self.stages.sampler.sleep()
        self.clock.add(collection.seconds)
        with self.clock.time("update"):
            update_metrics = self._update(collection.experiences)
        self._count(collection)
        self._report(collection_metrics(collection, version) | update_metrics)

    def _update(self, experiences: Sequence[Experience]) -> dict[str, float]:
        """Takes the optimiser steps of a rollout batch; returns the means of their statistics."""
        assert self.policy is not None
        self.policy.train()
        stats, scorer = RunningStats(), self.scorer()
        parts = split_by_group(experiences, self.updates_per_batch)
        # Before the first step the current log-probs are the old ones: that part needs no extra pass.
        old = [None if i == 0 else scorer.logprobs(part) for i, part in enumerate(parts)]
        for part, old_logprobs in zip(parts, old, strict=True):
            self._optimizer_step(scorer, part, old_logprobs, stats)
        return {f"update/{name}": value for name, value in stats.compute().items()}

    def _optimizer_step(
        self,
        scorer: Scorer,
        experiences: Sequence[Experience],
        old_logprobs: Sequence[torch.Tensor | None] | None,
        stats: RunningStats,
    ) -> None:
        """Takes one optimiser step over these experiences."""
        optimizer = cast(torch.optim.Optimizer, self.optimizers())
        rate = self._scheduled_rate()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        total = 0.0
        batches = list(scorer.micro_batches(experiences, old_logprobs))
        for batch in batches:
            self._synchronise_gradients(batch is batches[-1])
            loss, batch_stats = scorer.compute_loss(batch)
            self.manual_backward(loss * world_size())  # the strategies average gradients over ranks
            total += float(loss.detach())
            if not batch.filler:
                stats.add_stats(batch_stats)
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters(), self.max_grad_norm or math.inf))
        if not math.isfinite(float(norm)):
            raise TrainingError(
                f"the gradient norm of optimiser step {self.counts['optimizer_steps']} is {float(norm)}: "
                "expected a finite number. Lower optimizer.lr, or train in float32"
            )
        optimizer.step()
        optimizer.zero_grad()
        self.counts["optimizer_steps"] += 1
        stats.add("loss", sum(gather(total)))
        stats.add("grad_norm", norm)
        stats.add("learning_rate", optimizer.param_groups[0]["lr"])

    def _synchronise_gradients(self, on: bool) -> None:
        """Under DDP only the last micro-batch of a step exchanges gradients; sharded ones always do."""
        replicas = self.trainer.strategy.model
        if isinstance(replicas, DistributedDataParallel):
            replicas.require_backward_grad_sync = on

    def scorer(self) -> Scorer:
        """Returns what computes log-probs and losses with the models as they are now."""
        assert self.policy is not None
        if self.packing == "auto":
            self.packing = choose_packing(self.policy, self.device)
        return Scorer(
            policy=self.policy,
            reference=next(iter(self._reference), None),
            loss=self.loss,
            temperature=self.stages.plan.attempt.temperature,
            max_tokens=self.micro_batch_tokens,
            packing=self.packing,
            device=self.device,
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
        prompts, over_long = render_all(self.stages, {task.id: task.messages for task in tasks})
        self.heldout.dropped += over_long
        requests = [
            SampleRequest(
                task_id=task.id,
                group_id=f"heldout:{task.id}",
                prompt_ids=prompts[task.id],
                n=self.validation_attempts,
                sampling=self.stages.plan.attempt,
                seed=derive_seed(self.seed, task.id, "heldout"),
            )
            for task in tasks
            if task.id in prompts
        ]
        judged = sample_and_judge(
            self.stages.sampler, self.stages.desk, tasks, requests, self.clock, "validate"
        )
        if batch_idx == 0 and judged[tasks[0].id]:
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
            self.counts["answers_sampled"] += len(answers := (*group.attempts, *group.revisions))
            self.counts["revisions_sampled"] += len(group.revisions)
            self.counts["tokens_sampled"] += sum(len(one.rollout.token_ids) for one in answers)

    def _report(self, metrics: Mapping[str, float]) -> None:
        """Logs metrics, for callbacks and the progress bar too. Every rank has the same."""
        shown = ("train/reward", "heldout/reward", "hindsight/reward")
        for name, value in metrics.items():
            self.log(name, value, logger=False, prog_bar=name in shown, batch_size=1)
        self.record(metrics)

    def record(self, metrics: Mapping[str, float]) -> None:
        """Writes metrics to the loggers, over the number of sampled answers.

        That is the budget that methods are compared at.
        """
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step=self.counts["answers_sampled"])
