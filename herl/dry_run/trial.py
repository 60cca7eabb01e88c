"""Tries out a run to estimate its time, memory and cost before they are spent.

configuration -> data and its lint -> a few batches, the longest update, some validation -> estimate.py
"""

from __future__ import annotations

import json
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, open_dict

from herl.callbacks import HerlCallback
from herl.config.build import Run, build
from herl.config.check import check
from herl.data.lint import findings
from herl.display.terminal import say
from herl.distributed import gather, is_first_process
from herl.dry_run.estimate import (
    BATCHES,
    HELDOUT_BATCHES,
    Batch,
    Tried,
    asked_of,
    gpu_estimate,
    run_estimate,
    show,
    usage_of,
)
from herl.dry_run.memory import killed_ranks, memory_of, warn_of_memory
from herl.environment import opened
from herl.files import write_whole
from herl.metrics.step import Step
from herl.metrics.throughput import memory
from herl.models.chat_template import render_prompt
from herl.module import HerlModule
from herl.types import Experience, Judgement, Rollout, SampleRequest, Sampling
from herl.update.gpu_cost import gpu_named, model_size

KEPT = ("refresh_sampler", "stop_on_signal")
"""Callbacks of the run that the trial keeps."""
ENDLESS = 10**9
"""Steps of a warm-up so long that the learning rate stays at 0."""


def dry_run(config: DictConfig) -> dict[str, Any]:
    """Runs the trial, writes the report to dry_run.json in the run's folder, prints it, and returns it."""
    check(config)
    cost = gpu_named(config.cost.gpu) if config.cost.gpu is not None else None
    size = model_size(config.cost.model or config.model.path) if cost else None
    tried = Tried()
    run = build(_trial_of(config), callbacks=[_Watch(tried)], gold=True)  # called before the refresh
    found = _lint(run) if is_first_process() else {}  # only it writes the report
    memory = memory_of(run)
    warn_of_memory(memory)
    with run.closing(), killed_ranks(run, memory):
        run.trainer.fit(run.module, run.data)
        before = dict(run.module.clock.seconds)  # the model is warm by now
        paid = Counter(run.gold.spent() if run.gold else {})
        trajectories = run.validate()
        spent = {name: s - before.get(name, 0.0) for name, s in run.module.clock.seconds.items()}
        phases = ("validate", "judge", "environment", "gold")
        tried.heldout_seconds = sum(spent.get(name, 0.0) for name in phases)
        tried.heldout = [one for trajectory in trajectories for one in trajectory.answers]
        tried.gold_usage = Counter(run.gold.spent() if run.gold else {}) - paid
    report = run_estimate(config, run, tried) | {"lint": found}
    if cost and size:
        report["gpus"] = gpu_estimate(config, run, tried, report, cost, size)
    if run.trainer.is_global_zero:
        path = Path(config.output_dir) / "dry_run.json"
        write_whole(path, json.dumps(report, indent=2) + "\n")
        show(report, path)
    return report


def _trial_of(config: DictConfig) -> DictConfig:
    """Returns the configuration cut to a few batches, without components that write files.

    The policy does not learn: all batches measure what it can do before training.
    """
    trial = deepcopy(config)
    with open_dict(trial):
        trial.callbacks = {name: config.callbacks[name] for name in KEPT if name in config.callbacks}
        trial.logger = {}
        # A gate that closes late in a run would close within these few batches.
        trial.module.hindsight_gate.update({"until": 1.0, "below_median": False})
        trial.module.warmup_steps = ENDLESS
        trial.trainer.update(
            {
                "max_epochs": 1, "max_steps": -1, "limit_train_batches": BATCHES,
                "limit_val_batches": HELDOUT_BATCHES, "val_check_interval": 1.0,
                "check_val_every_n_epoch": 2, "enable_progress_bar": False, "enable_checkpointing": False,
            }
        )  # fmt: skip
    return trial


def _lint(run: Run) -> dict[str, int]:
    data: Any = run.data
    stages = run.module.stages
    tokenizer, environment = stages.tokenizer, stages.environment
    found = findings(
        {"train": data.train, "heldout": data.heldout},
        prompt_tokens=lambda task: len(render_prompt(tokenizer, opened(environment, task))),
        max_prompt_tokens=stages.plan.max_prompt_tokens,
    )
    return dict(Counter(f"{one.level}: {one.kind}" for one in found))


class _Watch(HerlCallback):
    """Records the batches, then tries the longest update."""

    def __init__(self, tried: Tried) -> None:
        self.tried = tried

    def on_step(self, trainer: L.Trainer, module: HerlModule, step: Step) -> None:
        tried, groups = self.tried, step.collection.groups
        revisions = [one for group in groups for one in group.revisions]
        answers = [one for group in groups for one in (*group.attempts, *group.revisions)]
        tried.groups += groups
        rows = module.scorer().micro_batches(step.collection.experiences)
        read = [group.prompt_ids for group in groups] + [one.rollout.prompt_ids for one in revisions]
        replies = [turn.reply_ids for one in answers for turn in one.rollout.turns]
        tried.batches.append(
            Batch(
                seconds={**step.collection.beside, **_without_wait(step)},
                answers=len(answers),
                answer_tokens=sum(len(one.rollout.token_ids) for one in answers),
                prompt_tokens=sum(map(len, (*read, *replies))),
                trained_tokens=sum(gather(sum(row.input_ids.numel() for row in rows))),
                usage=usage_of(answers),
                rounds=asked_of(groups, module.stages),
            )
        )
        if trainer.is_global_zero:
            spent = sum(step.seconds.values())
            say(f"herl: batch {len(tried.batches)} of {BATCHES}: {spent:.1f} s", stderr=True)
        decode = module.stages.tokenizer.decode
        if groups:
            tried.prompt = str(decode(list(groups[0].prompt_ids)))
        if revisions:
            tried.revision_prompt = str(decode(list(revisions[0].rollout.prompt_ids)))

    def on_epoch_end(self, trainer: L.Trainer, module: HerlModule) -> None:
        self._longest(module)
        self.tried.memory = memory()

    def _longest(self, module: HerlModule) -> None:
        """Computes loss and gradient of the longest group that the configuration and the model allow."""
        plan = module.stages.plan
        context, (_, answer) = plan.max_prompt_tokens, module.stages.longest_trained
        scorer = module.scorer()
        experiences = [_made_up(i, context, answer) for i in range(plan.attempts_per_prompt)]
        batch = next(iter(scorer.micro_batches(experiences)))
        self.tried.longest_tokens = batch.input_ids.numel()
        before = module.clock.seconds["longest"]
        with module.clock.time("longest"), module.trainer.precision_plugin.forward_context():
            loss, _ = scorer.compute_loss(batch)
            module.manual_backward(loss)
            float(loss.detach())  # waits for the GPU to finish
        self.tried.longest_seconds = module.clock.seconds["longest"] - before
        module.zero_grad()


def _without_wait(step: Step) -> dict[str, float]:
    """The step's phases without the wait for a batch drawn ahead, whose own phases tell its time."""
    return {phase: spent for phase, spent in step.seconds.items() if phase != "wait"}


def _made_up(number: int, context: int, answer: int) -> Experience:
    request = SampleRequest(
        task_id="longest", group_id="longest", prompt_ids=(1,) * context, n=1, sampling=Sampling(), seed=0
    )
    rollout = Rollout.answering(request, number, token_ids=(1,) * answer, logprobs=(-1.0,) * answer)
    judgement = Judgement(rollout_id=rollout.id, verdicts=(), reward=0.0)
    return Experience(
        rollout=rollout, judgement=judgement, reward=0.0, bonus=0.0, advantage=1.0 if number % 2 else -1.0,
        context_ids=rollout.prompt_ids,
    )  # fmt: skip
