"""Tries a run before it costs anything: what it would read, ask, take and cost.

    configuration -> data and its lint -> two batches, the longest update, one validation batch -> estimate

The estimate is the second batch times the number of batches, and the validation batch times the number of
those. Answers change their length while a policy learns, and revisions their number: it is no promise.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning as L
from omegaconf import DictConfig, open_dict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from herl.build import Run, build, make
from herl.callbacks.answer_budget import AnswerBudget
from herl.experience import render
from herl.lint import findings
from herl.metrics.throughput import memory
from herl.module import HerlModule
from herl.types import Experience, Judged, Judgement, Rollout

KEPT = ("refresh_sampler",)
"""Callbacks of the run that take part."""


@dataclass(slots=True)
class Tried:
    """What the trial found."""

    lint: dict[str, int] = field(default_factory=dict)
    """Findings by level and kind."""
    prompt: str = ""
    """A prompt as the model sees it."""
    revision_prompt: str = ""
    step_seconds: dict[str, float] = field(default_factory=dict)
    """Of the second batch, by phase."""
    heldout_seconds: float = 0.0
    """Of one validation batch."""
    answers_per_batch: float = 0.0
    usage: dict[str, float] = field(default_factory=dict)
    """Of judging one batch: calls, tokens, cost."""
    heldout_usage: dict[str, float] = field(default_factory=dict)
    """Of judging one validation batch."""
    longest_tokens: int = 0
    """Of the longest micro-batch that may come."""
    longest_seconds: float = 0.0
    memory: dict[str, float] = field(default_factory=dict)
    """Peak, in GiB."""


def dry_run(config: DictConfig) -> dict[str, Any]:
    """Runs the trial, writes dry_run.json in the run's folder, shows it, and returns it."""
    trial = _trial_of(config)
    run = build(trial)
    tried = Tried(lint=_lint(config, run))
    with run.closing():
        run.trainer.callbacks.insert(0, _Watch(tried))  # type: ignore[attr-defined]  # before the refresh
        run.trainer.fit(run.module, run.data)
        before = dict(run.module.clock.seconds)  # the model is warm by now
        run.trainer.validate(run.module, run.data, verbose=False)
        spent = {name: s - before.get(name, 0.0) for name, s in run.module.clock.seconds.items()}
        tried.heldout_seconds = spent.get("validate", 0.0) + spent.get("judge", 0.0)
        tried.heldout_usage = _usage([one for t in run.module.heldout for one in t.answers])
    report = _report(config, run, tried)
    if run.trainer.is_global_zero:
        path = Path(config.output_dir) / "dry_run.json"
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _show(report, path)
    return report


def _trial_of(config: DictConfig) -> DictConfig:
    """The configuration with two batches, and with nothing that writes."""
    trial = deepcopy(config)
    with open_dict(trial):
        trial.callbacks = {name: config.callbacks[name] for name in KEPT if name in config.callbacks}
        trial.logger = {}
        trial.trainer.update(
            {
                "max_epochs": 1, "max_steps": -1, "limit_train_batches": 2, "limit_val_batches": 1,
                "val_check_interval": 1.0, "check_val_every_n_epoch": 2, "enable_progress_bar": False,
                "enable_checkpointing": False,
            }
        )  # fmt: skip
    return trial


def _lint(config: DictConfig, run: Run) -> dict[str, int]:
    data: Any = run.data
    tokenizer = run.module.stages.tokenizer
    found = findings(
        {"train": data.train, "heldout": data.heldout},
        prompt_tokens=lambda task: len(render(tokenizer, task.messages)),
        max_prompt_tokens=config.rollout.max_prompt_tokens,
    )
    return dict(Counter(f"{one.level}: {one.kind}" for one in found))


class _Watch(L.Callback):
    """Takes the times of the second batch, and tries the longest update after it."""

    def __init__(self, tried: Tried) -> None:
        self.tried = tried

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._before = dict(cast(HerlModule, pl_module).clock.seconds)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = cast(HerlModule, pl_module)
        assert module.collection is not None
        tried, groups = self.tried, module.collection.groups
        tried.step_seconds = {
            name: spent - self._before.get(name, 0.0) for name, spent in module.clock.seconds.items()
        }
        answers = [one for group in groups for one in (*group.attempts, *group.revisions)]
        tried.answers_per_batch = len(answers)
        tried.usage = _usage(answers)
        decode = module.stages.tokenizer.decode
        if groups:
            tried.prompt = str(decode(list(groups[0].prompt_ids)))
        revisions = [one for group in groups for one in group.revisions]
        if revisions:
            tried.revision_prompt = str(decode(list(revisions[0].rollout.prompt_ids)))
        if batch_idx == 1:
            self._longest(module)
            tried.memory = memory()

    def _longest(self, module: HerlModule) -> None:
        """Computes loss and gradient of a group as long as the configuration and the model allow."""
        plan, policy = module.stages.plan, module.policy
        assert policy is not None
        most = getattr(policy.config.get_text_config(), "max_position_embeddings", 2**31)
        answer = min(plan.attempt.max_new_tokens, most - 1)
        context = max(1, min(plan.max_prompt_tokens, most - answer))
        scorer = module.scorer()
        experiences = [_made_up(i, context, answer) for i in range(plan.attempts_per_prompt)]
        batch = next(iter(scorer.micro_batches(experiences)))
        self.tried.longest_tokens = batch.input_ids.numel()
        before = module.clock.seconds["longest"]
        with module.clock.time("longest"):
            loss, _ = scorer.compute_loss(batch)
            module.manual_backward(loss)
        self.tried.longest_seconds = module.clock.seconds["longest"] - before
        module.zero_grad()


def _usage(answers: Sequence[Judged]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for one in answers:
        total.update({name: one.judgement.usage.get(name, 0.0) for name in ("calls", "tokens", "cost")})
    return {name: value for name, value in total.items() if value}


def _made_up(number: int, context: int, answer: int) -> Experience:
    rollout = Rollout(
        id=f"longest/{number}", task_id="longest", group_id="longest", prompt_ids=(1,) * context,
        token_ids=(1,) * answer, logprobs=(-1.0,) * answer, text="", finish_reason="length", policy_version=0,
    )  # fmt: skip
    judgement = Judgement(rollout_id=rollout.id, verdicts=(), reward=0.0)
    return Experience(
        rollout=rollout, judgement=judgement, reward=0.0, bonus=0.0, advantage=1.0 if number % 2 else -1.0,
        context_ids=rollout.prompt_ids,
    )  # fmt: skip


def _report(config: DictConfig, run: Run, tried: Tried) -> dict[str, Any]:
    data: Any = run.data
    per_epoch = _part(config.trainer.limit_train_batches, math.ceil(len(data.train) / data.prompts_per_batch))
    batches = _batches(config, per_epoch, tried.answers_per_batch)
    heldout = _part(config.trainer.limit_val_batches, math.ceil(len(data.heldout) / data.prompts_per_batch))
    validations = 2 + _validations(config, batches, per_epoch)  # before and after the run
    seconds = {phase: spent * batches for phase, spent in tried.step_seconds.items() if phase != "validate"}
    seconds["validate"] = tried.heldout_seconds * heldout * validations
    return {
        "prompts": {"train": len(data.train), "heldout": len(data.heldout)},
        "lint": tried.lint,
        "prompt": tried.prompt,
        "revision_prompt": tried.revision_prompt,
        "batches": batches,
        "validations": validations,
        "answers": round(batches * tried.answers_per_batch),
        "step_seconds": {name: round(spent, 3) for name, spent in tried.step_seconds.items() if spent},
        "run_seconds": {name: round(spent, 1) for name, spent in seconds.items() if spent}
        | {"total": round(sum(seconds.values()), 1)},
        "binds": max(seconds, key=lambda name: seconds[name]),
        "longest_update": {"tokens": tried.longest_tokens, "seconds": round(tried.longest_seconds, 3)},
        "memory_gib": {name.partition("/")[2]: round(value, 2) for name, value in tried.memory.items()},
        "judge": {
            name: round(value * batches + tried.heldout_usage.get(name, 0.0) * heldout * validations, 4)
            for name, value in tried.usage.items()
        },
    }


def _part(limit: float | int | None, whole: int) -> int:
    """Lightning's limits: a number of batches, or a share of them."""
    if limit is None:
        return whole
    return min(whole, limit) if isinstance(limit, int) else int(whole * limit)


def _batches(config: DictConfig, per_epoch: int, answers: float) -> int:
    limits = [per_epoch * config.trainer.max_epochs] if (config.trainer.max_epochs or -1) > 0 else []
    if config.trainer.max_steps > 0:
        limits.append(math.ceil(config.trainer.max_steps / config.module.updates_per_batch))
    for node in config.callbacks.values():
        callback = make(node) if str(node._target_).endswith(AnswerBudget.__name__) else None
        if callback is not None and callback.answers is not None and answers:
            limits.append(math.ceil(callback.answers / answers))
    return min(limits, default=per_epoch)


def _validations(config: DictConfig, batches: int, per_epoch: int) -> int:
    every = config.trainer.val_check_interval
    every = max(1, int(every * per_epoch)) if isinstance(every, float) else every
    epochs = config.trainer.check_val_every_n_epoch or 1
    return int(batches // (every * epochs))


def _show(report: Mapping[str, Any], path: Path) -> None:
    console = Console()
    for name in ("prompt", "revision_prompt"):
        if report[name]:
            console.rule(f"a {name.replace('_', ' ')} as the model sees it")
            console.print(Text(report[name]))
    console.rule("estimate")
    table = Table(
        "phase",
        "one batch, s",
        "the run, s",
        title=f"{report['batches']} batches, {report['answers']} answers",
    )
    for name, spent in report["run_seconds"].items():
        step = report["step_seconds"].get(name)
        table.add_row(name, "" if step is None else f"{step:.3f}", f"{spent:.1f}")
    console.print(table)
    lines = {
        "prompts": report["prompts"],
        "found by lint": report["lint"] or "nothing",
        "most of the time": report["binds"],
        "longest update": report["longest_update"],
        "peak memory, GiB": report["memory_gib"],
        "judging the run": report["judge"] or "free",
        "all of it": path,
    }
    for name, value in lines.items():
        console.print(Text(f"{name}: {value}"), soft_wrap=True)
