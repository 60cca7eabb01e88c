"""Stage 11: takes the optimizer steps of one rollout batch.

experiences -> parts of whole groups -> rows -> loss and gradient -> clipping -> optimizer step

Every rank takes the same steps. The rows of a step are divided among ranks; gradients and metrics are those
of the whole step. A step whose gradient is not finite is skipped; too many in a row end the run.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal, cast

import lightning as L
import torch
from transformers import PreTrainedModel

from herl.distributed import gather, world_size
from herl.errors import ConfigError, TrainingError, check_above, check_at_least
from herl.hindsight.teacher import NO_TEACHER, Teacher
from herl.models.fsdp import synchronize_gradients
from herl.models.weights import first_not_finite, is_sharded, whole
from herl.rollout.check_signal import check_signal, trial_advantages
from herl.rollout.stages import Stages
from herl.sampler.drawing import penalizes, truncates
from herl.types import Experience, Sampling
from herl.update.batch import MicroBatch, Packing, split_by_group
from herl.update.loss.base import Loss
from herl.update.packing_probe import choose_packing
from herl.update.reference import check_reference, follow, held_by
from herl.update.row_tokens import CPU_TOKENS, row_tokens
from herl.update.running_stats import RunningStats
from herl.update.schedule import Schedule, learning_rate_share, run_share
from herl.update.scorer import Scorer
from herl.update.teaching import taught_logprobs

logger = logging.getLogger(__name__)
Optimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
ADAMW: Optimizer = partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.01, fused=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The report of the optimizer steps of a rollout batch."""

    metrics: Mapping[str, float]
    """"update/<name>": means over the steps and all ranks."""
    faults: Mapping[str, str]
    """Faults by answer id."""
    policy_version: int
    """Optimizer steps taken before these."""


class Updater:
    """Trains the policy on one rollout batch after another.

    Args:
        loss: The loss to minimize.
        attempt: How attempts are drawn. Log-probs are computed at its temperature.
        teacher: Adds to the advantage of each token (`herl.update.teaching`).

    The other arguments are those of `herl.module.HerlModule`.
    """

    def __init__(
        self,
        loss: Loss,
        attempt: Sampling,
        teacher: Teacher = NO_TEACHER,
        *,
        optimizer: Optimizer,
        updates_per_batch: int,
        micro_batch_tokens: int | Literal["auto"],
        packing: Packing | Literal["auto"],
        schedule: Schedule,
        warmup_steps: int,
        max_grad_norm: float | None,
        max_skipped_steps: int,
    ) -> None:
        tokens = None if micro_batch_tokens == "auto" else micro_batch_tokens
        check_at_least("module", 1, micro_batch_tokens=tokens, updates_per_batch=updates_per_batch)
        check_at_least("module", 0, warmup_steps=warmup_steps, max_skipped_steps=max_skipped_steps)
        check_above("module", 0, max_grad_norm=max_grad_norm)
        if teacher.teaches and not loss.needs_old_logprobs:
            raise ConfigError(
                f"teacher: expected a policy loss, whose tokens each have an advantage, got "
                f"{type(loss).__name__}: use teacher=none, or loss=clip"
            )
        if (penalizes(attempt) or truncates(attempt)) and loss.needs_on_policy:
            raise ConfigError(
                "loss.mismatch.level: expected token (or sequence), since rollout.attempt draws from another "
                "distribution than the policy's (top_p, top_k, min_p or a penalty), which its gradient must "
                f"weigh, got {type(loss).__name__} without importance weights"
            )
        self.loss = loss
        self.temperature = attempt.temperature
        self.teacher = teacher
        self.optimizer = optimizer
        self.updates_per_batch = updates_per_batch
        self.micro_batch_tokens = micro_batch_tokens
        self.packing = packing
        self.schedule, self.warmup_steps = schedule, warmup_steps
        self.max_grad_norm = max_grad_norm
        self.max_skipped_steps = max_skipped_steps
        self.reference: PreTrainedModel | None = None
        """The second model, if the loss needs a reference and the policy without adapters cannot serve."""
        self._skipped = 0  # in a row

    def optimizer_of(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Returns the optimizer of the trainable parameters. `update` sets its learning rate.

        Raises:
            ConfigError: the optimizer refuses its settings.
        """
        try:
            optimizer = self.optimizer(parameter for parameter in parameters if parameter.requires_grad)
        except ValueError as error:
            raise ConfigError(f"optimizer: {error}") from error
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]  # a sharded checkpoint restores only existing keys
        return optimizer

    def hold_reference(self, module: L.LightningModule, reference: PreTrainedModel) -> None:
        """Keeps the second model, which the loss needs, and freezes it."""
        self.reference = held_by(module, reference, self.loss)

    def place_reference(self, device: torch.device) -> None:
        """Moves the reference, which Lightning does not know about, to the policy's device."""
        if self.reference is not None and not is_sharded(self.reference):
            cast(torch.nn.Module, self.reference).to(device)

    def check(self, stages: Stages, *, adapters: bool) -> None:
        """Refuses settings under which nothing can be learned, before a model is loaded.

        Args:
            stages: The components of the run.
            adapters: Whether the policy has adapters.

        Raises:
            ConfigError: no group can have a signal, or the loss does not fit the groups, the revisions or the
                model.
        """
        check_signal(stages)
        greedy = stages.plan.revision.temperature == 0
        if greedy and stages.hindsight.revises and self.loss.needs_drawn_revisions:
            raise ConfigError(
                "rollout.revision.temperature: expected a number above 0 with "
                "loss.revision_ratio=cross_context, which divides by the probability of the revision when it "
                "was drawn, got 0"
            )
        self.loss.check(trial_advantages(stages), stages.plan.training_context)
        check_reference(self.loss, adapters=adapters)

    def scorer(self, policy: PreTrainedModel, device: torch.device) -> Scorer:
        """Returns a scorer, which computes log-probs and losses, for the current models."""
        if self.packing == "auto":
            self.packing = choose_packing(policy, device)
        return Scorer(
            policy=policy,
            reference=self.reference,
            loss=self.loss,
            temperature=self.temperature,
            max_tokens=CPU_TOKENS if self.micro_batch_tokens == "auto" else self.micro_batch_tokens,
            packing=self.packing,
            device=device,
            teacher=self.teacher,
        )

    def steps(self, experiences: Sequence[Experience]) -> int:
        """Returns how many optimizer steps `update` takes on these experiences if it skips none."""
        return len(split_by_group(experiences, self.updates_per_batch))

    def update(
        self,
        module: L.LightningModule,
        policy: PreTrainedModel,
        experiences: Sequence[Experience],
        counts: Counter[str],
    ) -> Update:
        """Trains on the experiences of one rollout batch. All ranks must call it.

        Args:
            module: Holds the policy, the optimizer and the trainer.
            policy: The model to train.
            experiences: The training data, the same on every rank.
            counts: Counts of the run; this method updates "optimizer_steps" and "skipped_steps".

        Raises:
            TrainingError: too many steps in a row had a gradient that is not finite.
        """
        version = counts["optimizer_steps"]
        policy.train()
        if self.reference is not None:
            self.reference.eval()
        optimizer = cast(torch.optim.Optimizer, module.optimizers())
        self.micro_batch_tokens = row_tokens(
            self.micro_batch_tokens, policy, optimizer, module.device, module.trainer.strategy
        )
        scorer = self.scorer(policy, module.device)
        stats, faults = RunningStats(), dict[str, str]()
        parts = split_by_group(experiences, self.updates_per_batch)
        # Before the first step the current log-probs are the old ones, so that part needs no extra pass.
        kept = self.loss.needs_old_logprobs
        old = [scorer.logprobs(part) if kept and i else None for i, part in enumerate(parts)]
        teacher_logprobs = taught_logprobs(scorer, experiences) if self.teacher.teaches else {}
        for part, old_logprobs in zip(parts, old, strict=True):
            prepared, prepared_stats = self.loss.prepare(part, scorer)
            stats.add_stats(prepared_stats)
            taught = [teacher_logprobs.get(e.rollout.id) for e in prepared] if teacher_logprobs else None
            batches = scorer.micro_batches(prepared, old_logprobs, taught)
            bad = self._step(module, scorer.for_step(prepared), prepared, batches, stats, counts)
            faults |= dict.fromkeys(bad, "the loss is not finite")
        metrics = {f"update/{name}": value for name, value in stats.compute().items()}
        return Update(metrics=metrics, faults=faults, policy_version=version)

    def _step(
        self,
        module: L.LightningModule,
        scorer: Scorer,
        experiences: Sequence[Experience],
        batches: Iterable[MicroBatch],
        stats: RunningStats,
        counts: Counter[str],
    ) -> list[str]:
        """Takes one step, or skips it and returns the ids of answers whose loss is not finite."""
        optimizer = cast(torch.optim.Optimizer, module.optimizers())
        done = run_share(module.trainer, module.trainer.fit_loop.batch_idx, counts)
        rate = learning_rate_share(self.schedule, counts["optimizer_steps"], self.warmup_steps, done)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        # read after the last pass, so that a GPU need not wait
        losses: list[tuple[torch.Tensor, tuple[int, ...]]] = []
        for batch in batches:
            synchronize_gradients(module.trainer, scorer.policy, batch.last)
            loss, batch_stats = scorer.compute_loss(batch)
            module.manual_backward(loss * world_size())  # the strategies average gradients over ranks
            losses.append((loss.detach(), batch.rows))
            if not batch.filler:
                stats.add_stats(batch_stats)
        norm = whole(torch.nn.utils.clip_grad_norm_(module.parameters(), self.max_grad_norm or math.inf))
        if not math.isfinite(float(norm)):
            wrong = chain.from_iterable(rows for loss, rows in losses if not math.isfinite(float(loss)))
            bad_ids = gather([experiences[place].rollout.id for place in wrong])
            bad = list(dict.fromkeys(chain.from_iterable(bad_ids)))
            self._skip(module, float(norm), bad, counts)
            return bad
        self._skipped = 0
        optimizer.step()
        optimizer.zero_grad()
        counts["optimizer_steps"] += 1
        if self.reference is not None:
            follow(self.reference, scorer.policy, self.loss, counts["optimizer_steps"])
        stats.add("loss", sum(gather(sum(float(loss) for loss, _ in losses))))
        stats.add("grad_norm", norm)
        stats.add("learning_rate", optimizer.param_groups[0]["lr"])
        return []

    def _skip(
        self, module: L.LightningModule, norm: float, answers: Iterable[str], counts: Counter[str]
    ) -> None:
        """Drops the gradient of a step, and raises if too many steps in a row were skipped."""
        self._skipped += 1
        counts["skipped_steps"] += 1
        tensor = first_not_finite(module)
        cast(torch.optim.Optimizer, module.optimizers()).zero_grad()
        message = (
            f"the gradient norm after optimizer step {counts['optimizer_steps']} is {norm}, expected a "
            f"finite number: {tensor} is not finite; answers whose loss is not: {[*answers][:5]}"
        )
        if self._skipped > self.max_skipped_steps:
            raise TrainingError(
                f"{message}. {self._skipped} steps in a row were skipped; module.max_skipped_steps allows "
                f"{self.max_skipped_steps}. Lower optimizer.lr, or train in float32"
            )
        logger.warning("%s. The step is skipped", message)
