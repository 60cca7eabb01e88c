"""Stage 12: HerlModule owns policy and reference and turns a batch of prompts into optimiser steps.

    training_step(prompts) = collect (stages 2-8) -> k optimiser steps (stages 9-11) -> report

Optimisation is manual: one rollout batch is split by whole groups into `updates_per_batch` optimiser steps,
each of them cut into micro-batches by a budget of tokens. On several ranks every rank knows the whole batch;
the micro-batches of a step are dealt out, and gradients and numbers are those of the whole step.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from transformers import PreTrainedModel

from herl.advantages import group_advantages
from herl.bonus import BonusReward, NoBonus
from herl.clock import PhaseClock
from herl.distributed import gather, together, world_size
from herl.errors import ConfigError, TrainingError, check_at_least
from herl.hindsight import HindsightBuilder, NoHindsight
from herl.judge import Judge, JudgeRunner
from herl.metrics.collection import collection_counts, collection_metrics
from herl.metrics.heldout import heldout_metrics
from herl.metrics.running import RunningStats
from herl.metrics.throughput import throughput_metrics, utilization
from herl.models.fsdp import check_trainer, load, synchronise_gradients
from herl.models.lora import has_adapters
from herl.models.pretrained import PretrainedModel
from herl.models.weights import first_not_finite, is_sharded, named_weights, whole
from herl.replay import NoReplay, Replay
from herl.rollout.collect import Collection, collect
from herl.rollout.improve import Trajectory, check_rounds
from herl.rollout.render import reading_sample
from herl.rollout.stages import Advantages, RolloutPlan, Selection, Stages, trial_advantages
from herl.rollout.validate import check_attempts, validate
from herl.sampler import Sampler
from herl.selection import form_group
from herl.teardown import TeardownOnError
from herl.types import Experience, Task
from herl.update.batch import Packing, split_by_group
from herl.update.card_needs import run_limits
from herl.update.loss.base import Loss
from herl.update.loss.policy import PolicyLoss
from herl.update.packing_probe import choose_packing
from herl.update.row_tokens import CPU_TOKENS, row_tokens
from herl.update.schedule import Schedule, learning_rate_share, run_share
from herl.update.scorer import Scorer

logger = logging.getLogger(__name__)
Optimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
SHOWN = ("train/reward", "revision/reward", "heldout/reward")  # on the progress bar
ADAMW: Optimizer = partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.01, fused=True)


class HerlModule(L.LightningModule):
    """Policy-gradient training on rubric rewards, with hindsight experience.

    Args:
        model: The policy, and the reference where one is needed.
        sampler: Draws answers (stage 2).
        judge: Judges them (stage 3).
        hindsight: Writes revision prompts (stage 4).
        bonus: Pays attempts for their potential (stage 5).
        replay: Good answers of earlier batches, between stages 5 and 6.
        selection: `herl.selection.form_group` with its options (stage 6).
        advantages: `herl.advantages.group_advantages` with its options (stage 7).
        loss: Stage 11.
        rollout: How many answers are drawn, how, and what they are trained under.
        judge_runner: `herl.judge.JudgeRunner` with its options: called with the judge, and with
            `needs_verdicts` where hindsight is made of verdicts.
        optimizer: Parameters -> optimizer.
        schedule: Course of the learning rate over the run, after the warm-up.
        warmup_steps: Optimiser steps over which the learning rate rises from 0.
        updates_per_batch: Optimiser steps per rollout batch.
        micro_batch_tokens: Tokens of a row, which is one forward pass. Changes memory and speed, never the
            result. `auto` for 8192 on a CPU and what fits in memory on a GPU (`herl.update.row_tokens`).
        packing: What a row holds (`herl.update.batch.Packing`); `auto` for the best that the model allows.
        max_skipped_steps: Steps in a row that may be skipped for a loss or gradient that is not finite.
        max_grad_norm: Gradients are clipped to this norm; None for no clipping.
        validation_attempts: Plain attempts per held-out prompt. More only lower the noise.
        validation_revisions: Revisions of each of them at most, reported beside the plain attempts.
        log_over: The x axis of all curves: sampled answers, attempts and revisions together, which is the
            budget that methods are compared at; or optimiser steps.
        seed: All random choices are hashes of it.
    """

    def __init__(
        self,
        model: PretrainedModel,
        sampler: Sampler,
        judge: Judge,
        hindsight: HindsightBuilder | None = None,
        bonus: BonusReward | None = None,
        replay: Replay | None = None,
        selection: Selection = form_group,
        advantages: Advantages = group_advantages,
        loss: Loss | None = None,
        rollout: RolloutPlan | None = None,
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
        log_over: Literal["answers_sampled", "optimizer_steps"] = "answers_sampled",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        tokens = None if micro_batch_tokens == "auto" else micro_batch_tokens
        counts = {"updates_per_batch": updates_per_batch, "validation_attempts": validation_attempts}
        check_at_least("module", 1, micro_batch_tokens=tokens, **counts)
        self.model = model
        self.loss = loss or PolicyLoss()
        self.optimizer = optimizer
        self.schedule, self.warmup_steps = schedule, warmup_steps
        self.updates_per_batch = updates_per_batch
        self.micro_batch_tokens = micro_batch_tokens
        self.packing = packing
        self.max_grad_norm = max_grad_norm
        self.max_skipped_steps = max_skipped_steps
        self.validation_attempts, self.validation_revisions = validation_attempts, validation_revisions
        self.log_over = log_over
        self.seed = seed
        hindsight = hindsight or NoHindsight()
        self.stages = Stages(
            tokenizer=model.tokenizer(),
            sampler=sampler,
            judge_runner=judge_runner(judge, needs_verdicts=hindsight.needs_verdicts),
            plan=(rollout or RolloutPlan()).within(model.max_tokens()),
            selection=selection,
            advantages=advantages,
            hindsight=hindsight,
            bonus=bonus or NoBonus(),
            replay=replay or NoReplay(),
        )
        self.loss.check(trial_advantages(self.stages), self.stages.plan.training_context)
        check_rounds("module.validation_revisions", validation_revisions, self.stages)
        check_attempts("module.validation_attempts", validation_attempts, self.stages.plan.heldout)
        self.policy: PreTrainedModel | None = None
        self._reference: tuple[PreTrainedModel, ...] = ()  # a tuple: Lightning neither registers nor saves it
        self.trains = True  # False: a run that only measures
        self.counts: Counter[str] = Counter()
        self.clock = PhaseClock()
        self.collection: Collection | None = None  # of the last step
        self.reported: dict[str, float] = {}  # by the last training step
        self.faults: dict[str, str] = {}  # of the last step: what was wrong, by answer
        self._skipped = 0  # optimiser steps in a row
        self.answer_budget: int | None = None  # of the whole run, set by `herl.callbacks.AnswerBudget`
        self.heldout: list[Trajectory] = []  # of the last validation
        self._dropped: Counter[str] = Counter()  # held-out prompts that were too long

    # Set-up

    def configure_model(self) -> None:
        """Loads the policy, and a reference only if the loss needs a second model. Safe to call again."""
        if self.policy is not None:
            return
        check_trainer(self.trainer, self.model)
        with torch.device("cpu"):  # Lightning makes the GPU the default here, and moves the model itself
            self.policy = load(self.model, self.trainer).train()
            if self.loss.needs_reference and not has_adapters(self.policy):
                self._reference = (load(self.model, self.trainer).eval().requires_grad_(False),)
            together(lambda: self.stages.sampler.prepare(run_limits(self)))
            together(partial(self.stages.sampler.start, self.policy, self.stages.tokenizer))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Builds the optimizer. Its learning rate is set before each step, from the run's progress."""
        optimizer = self.optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]  # a sharded checkpoint brings back only what is there already
        return optimizer

    def configure_callbacks(self) -> list[L.Callback]:
        """Adds the teardown after an error."""
        return [TeardownOnError()]

    def setup(self, stage: str) -> None:
        """Opens the judge runner."""
        together(self.stages.judge_runner.open)

    def teardown(self, stage: str) -> None:
        """Closes the judge runner."""
        self.stages.judge_runner.close()

    def on_fit_start(self) -> None:
        """Moves the reference, which Lightning does not know, to the policy's device."""
        for reference in self._reference:
            if not is_sharded(reference):
                cast(torch.nn.Module, reference).to(self.device)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the policy's weights one by one, as its sampler loads them."""
        policy, sampler = cast(PreTrainedModel, self.policy), self.stages.sampler
        return named_weights(policy, sampler.weights_dtype, checkpoint=sampler.checkpoint_names)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counts, so that a resumed run goes on counting."""
        checkpoint["herl"] = {
            "counts": dict(self.counts),
            "judge": self.stages.judge_runner.state_dict(),
            "replay": self.stages.replay.state_dict(),
            "seconds": dict(self.clock.seconds),
            "prompt": reading_sample(self.stages.tokenizer),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the counts back.

        Raises:
            ConfigError: the tokenizer or its chat template is another, or herl did not write it.
        """
        if "herl" not in checkpoint:
            raise ConfigError("expected a checkpoint written by herl fit, got another program's")
        self.counts = Counter(checkpoint["herl"]["counts"])
        if checkpoint["herl"]["prompt"] != reading_sample(self.stages.tokenizer):
            raise ConfigError(
                "model: expected the tokenizer and chat template of the checkpoint, got others with "
                f"{self.model.path}"
            )
        if self.trainer.state.fn == TrainerFn.FITTING:  # the validation before it loads it too
            self.clock.add(checkpoint["herl"]["seconds"])
            self.clock.lap()
            self.stages.judge_runner.load_state_dict(checkpoint["herl"]["judge"])
            kept = checkpoint["herl"].get("replay") or checkpoint["herl"].get("memory", {})  # its name in 0.1
            self.stages.replay.load_state_dict(kept)

    # Training

    def training_step(self, tasks: list[Task], batch_idx: int) -> None:
        """Runs stages 2 to 12 for one batch of prompts."""
        version = self.counts["optimizer_steps"]
        key = (self.seed, self.current_epoch, batch_idx)
        self.faults = {}
        self.collection = collection = collect(tasks, self.stages, key, self.clock)
        self.stages.sampler.sleep()
        with self.clock.time("update"):
            update_metrics = self._update(collection.experiences)
        self.counts.update(collection_counts(collection))
        self.reported = collection_metrics(collection, version) | update_metrics | self._progress(collection)
        self._report(self.reported)

    def _update(self, experiences: Sequence[Experience]) -> dict[str, float]:
        """Takes the optimiser steps of a rollout batch; returns the means of their statistics."""
        assert self.policy is not None
        self.policy.train()
        optimizer = cast(torch.optim.Optimizer, self.optimizers())
        self.micro_batch_tokens = row_tokens(self.micro_batch_tokens, self.policy, optimizer, self.device)
        stats, scorer = RunningStats(), self.scorer()
        parts = split_by_group(experiences, self.updates_per_batch)
        # Before the first step the current log-probs are the old ones: that part needs no extra pass.
        kept = self.loss.needs_old_logprobs
        old = [scorer.logprobs(part) if kept and i else None for i, part in enumerate(parts)]
        for part, old_logprobs in zip(parts, old, strict=True):
            prepared, prepared_stats = self.loss.prepare(part, scorer)
            stats.add_stats(prepared_stats)
            self._optimizer_step(scorer, prepared, old_logprobs, stats)
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
        done = self.share_done(self.trainer.fit_loop.batch_idx)  # nothing but the point of the run
        rate = learning_rate_share(self.schedule, self.counts["optimizer_steps"], self.warmup_steps, done)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        losses: list[
            tuple[torch.Tensor, tuple[int, ...]]
        ] = []  # read after the last pass: a GPU need not wait
        for batch in scorer.micro_batches(experiences, old_logprobs):
            synchronise_gradients(self.trainer, batch.last)
            loss, batch_stats = scorer.compute_loss(batch)
            self.manual_backward(loss * world_size())  # the strategies average gradients over ranks
            losses.append((loss.detach(), batch.rows))
            if not batch.filler:
                stats.add_stats(batch_stats)
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters(), self.max_grad_norm or math.inf))
        if not math.isfinite(float(norm)):
            wrong = chain.from_iterable(rows for loss, rows in losses if not math.isfinite(float(loss)))
            bad = [experiences[place].rollout.id for place in wrong]
            return self._skip_step(optimizer, float(norm), chain.from_iterable(gather(bad)))
        self._skipped = 0
        optimizer.step()
        optimizer.zero_grad()
        self.counts["optimizer_steps"] += 1
        stats.add("loss", sum(gather(sum(float(loss) for loss, _ in losses))))
        stats.add("grad_norm", norm)
        stats.add("learning_rate", optimizer.param_groups[0]["lr"])

    def share_done(self, batches: int) -> float:
        """Returns how much of the run is done, in [0, 1], after so many batches of the present epoch."""
        spent = self.counts["answers_sampled"] / self.answer_budget if self.answer_budget else 0.0
        return run_share(self.trainer, batches, spent)

    def _skip_step(self, optimizer: torch.optim.Optimizer, norm: float, answers: Iterable[str]) -> None:
        """Leaves an optimiser step out, and remembers the answers whose loss is not finite."""
        bad = list(dict.fromkeys(answers))
        self.faults |= dict.fromkeys(bad, "the loss is not finite")
        self._skipped += 1
        self.counts["skipped_steps"] += 1
        tensor = first_not_finite(self)
        optimizer.zero_grad()
        said = (
            f"the gradient norm after optimiser step {self.counts['optimizer_steps']} is {norm}, expected a "
            f"finite number: {tensor} is not finite; answers whose loss is not: {bad[:5]}"
        )
        if self._skipped > self.max_skipped_steps:
            raise TrainingError(
                f"{said}. {self._skipped} steps in a row were skipped, module.max_skipped_steps allows "
                f"{self.max_skipped_steps}. Lower optimizer.lr, or train in float32"
            )
        logger.warning("%s. The step is skipped", said)

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
            max_tokens=CPU_TOKENS if self.micro_batch_tokens == "auto" else self.micro_batch_tokens,
            packing=self.packing,
            device=self.device,
        )

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Forgets the last validation."""
        self.heldout, self._dropped = [], Counter()

    def validation_step(self, tasks: list[Task], batch_idx: int) -> None:
        """Attempts at held-out prompts and their revisions, with the same random numbers every time."""
        found = validate(
            tasks,
            self.stages,
            seed=self.seed,
            attempts=self.validation_attempts,
            revisions=self.validation_revisions,
            clock=self.clock,
        )
        self.heldout += found.trajectories
        self._dropped.update(found.dropped)

    def on_validation_epoch_end(self) -> None:
        """Reports the epoch of validation: plain attempts, and the best answer after each revision."""
        metrics = heldout_metrics(self.heldout, self._dropped, self.validation_revisions)
        self._report(metrics | {"time/validate": sum(self.clock.lap().values())})

    # Reports

    def _progress(self, collection: Collection) -> dict[str, float]:
        """How far the run is, and how fast this step was, with the refresh before it."""
        numbers = {f"progress/{name}": float(count) for name, count in sorted(self.counts.items())}
        numbers["progress/epoch"] = float(self.current_epoch)
        assert self.policy is not None
        seconds = self.clock.lap()
        measured = throughput_metrics(collection, seconds) | utilization(self.policy, collection, seconds)
        return numbers | measured | {k: max(gather(v)) for k, v in measured.items() if k.endswith("_gib")}

    def _report(self, metrics: Mapping[str, float]) -> None:
        """Logs metrics, for callbacks and the progress bar too. Every rank has the same."""
        for name, value in metrics.items():
            if not name.partition("/")[0].endswith(("_criterion", "_category")):  # curves alone: too many
                self.log(name, value, logger=False, prog_bar=name in SHOWN, batch_size=1)
        self.record(metrics)

    def record(self, metrics: Mapping[str, float]) -> None:
        """Writes metrics to the loggers, over `log_over`."""
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step=self.counts[self.log_over])
