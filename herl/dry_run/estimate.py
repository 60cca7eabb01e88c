"""Extrapolates from a trial of a few batches to the whole run: time, memory, cost, and the bottleneck.

The estimate is the median batch, leaving out the first, times the number of batches, plus the mean validation
batch times the number of those. It is no promise: while a policy learns, the length of answers and the number
of revisions change. For other GPUs, see `batch_cost.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from statistics import median, median_low
from typing import Any

from lightning.pytorch.strategies import Strategy
from omegaconf import DictConfig
from rich.box import HEAVY_HEAD, Box
from rich.table import Table
from rich.text import Text

from herl.callbacks.answer_budget import AnswerBudget
from herl.config.build import Run, make
from herl.display.screen import Screen
from herl.dry_run.batch_cost import GPUS_OF_A_NODE, binding, estimate
from herl.dry_run.uplift import uplift
from herl.metrics.episodes import episode_metrics
from herl.models.fsdp import FSDPStrategy
from herl.prompt_text import visible
from herl.rollout.stages import Stages
from herl.rollout.streaming import follows_up_at_once
from herl.types import Group, Judged
from herl.update.card_needs import longest_micro_batch, settings_of
from herl.update.gpu_cost import GPU, Asked, Engine, ModelSize, Work
from herl.update.schedule import limited

BATCHES = 4
"""Batches in the trial; the first is a warm-up."""
HELDOUT_BATCHES = 2
ENGINES: dict[str, Engine] = {
    "herl.sampler.vllm.VLLMSampler": "vllm",
    "herl.sampler.vllm_server.VLLMServerSampler": "elsewhere",
}
"""Engines by sampler target. Any other sampler is assumed to sample from the policy itself."""


FORMULAS = "(by the formulas in herl/dry_run/batch_cost.py and herl/update/gpu_cost.py)"
UNCOUNTED = "Not counted there: what an engine without a prefix cache reads again in each turn."
"""What the formulas for other GPUs leave out of episodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Time, tokens and judge usage of one batch."""

    seconds: dict[str, float]
    """Wall time by phase."""
    answers: int
    answer_tokens: int
    prompt_tokens: int
    """Tokens the sampler read, with each prompt counted once for all its attempts, and each reply once."""
    trained_tokens: int
    """Tokens in the update's rows, including contexts."""
    usage: dict[str, float]
    """Judge usage: calls, tokens, cost."""
    rounds: tuple[tuple[Asked, ...], ...] = ()
    """Tokens of all answers, as `asked_of` has them."""


@dataclass(slots=True)
class Tried:
    """Results of the trial."""

    batches: list[Batch] = field(default_factory=list)
    prompt: str = ""
    """A sample prompt as the model sees it."""
    revision_prompt: str = ""
    groups: list[Group] = field(default_factory=list)
    """All groups of the trial, by the policy as it began."""
    heldout: list[Judged] = field(default_factory=list)
    heldout_seconds: float = 0.0
    gold_usage: Mapping[str, float] = field(default_factory=dict)
    """What gold judges used on the held-out answers: calls, tokens, cost. Zeros are left out."""
    longest_tokens: int = 0
    """Tokens in the longest possible micro-batch."""
    longest_seconds: float = 0.0
    memory: dict[str, float] = field(default_factory=dict)
    """Peak memory, in GiB."""

    def typical(self) -> Batch:
        """Returns medians over all batches but the first, which is a warm-up."""
        warm = self.batches[1:] or self.batches
        phases = {name for batch in warm for name in batch.seconds}
        used = {name for batch in warm for name in batch.usage}
        return Batch(
            seconds={name: median(b.seconds.get(name, 0.0) for b in warm) for name in sorted(phases)},
            answers=median_low(b.answers for b in warm),
            answer_tokens=median_low(b.answer_tokens for b in warm),
            prompt_tokens=median_low(b.prompt_tokens for b in warm),
            trained_tokens=median_low(b.trained_tokens for b in warm),
            usage={name: median(b.usage.get(name, 0.0) for b in warm) for name in sorted(used)},
            rounds=sorted(warm, key=lambda b: b.answer_tokens)[(len(warm) - 1) // 2].rounds,
        )


def usage_of(answers: Sequence[Judged]) -> dict[str, float]:
    """Returns the judge usage of these answers: calls, tokens, cost. Zeros are left out."""
    total: Counter[str] = Counter()
    for one in answers:
        total.update({name: one.judgement.usage.get(name, 0.0) for name in ("calls", "tokens", "cost")})
    return {name: value for name, value in total.items() if value}


def asked_of(groups: Sequence[Group], stages: Stages) -> tuple[tuple[Asked, ...], ...]:
    """Returns the tokens of a batch's answers, by the round in which an engine is asked for them.

    Revisions follow their attempts on the same engine, or all attempts of the batch in a second round. With a
    builder that tells the rubric, they are sampled beside them. What a refill drew counts as part of the
    first draw, so its later rounds are missing from the estimate.
    """
    attempts = [_lengths(group.attempts) for group in groups]
    revisions = [_lengths(group.revisions) for group in groups]
    if stages.hindsight.tells:
        return (tuple(Asked(answers=(*a, *r)) for a, r in zip(attempts, revisions, strict=True)),)
    if _revises_at_once(stages):
        return (tuple(Asked(answers=a, follow_ups=r) for a, r in zip(attempts, revisions, strict=True)),)
    rounds = [tuple(Asked(answers=one) for one in answers if one) for answers in (attempts, revisions)]
    return tuple(one for one in rounds if one)


def whole_groups(stages: Stages) -> bool:
    """Whether one engine samples all answers to a prompt: they are judged, or followed up, together."""
    return _revises_at_once(stages) or stages.judge_runner.judge.judges_groups


def _revises_at_once(stages: Stages) -> bool:
    hindsight = stages.hindsight
    return hindsight.revises and not hindsight.tells and follows_up_at_once(stages.sampler)


def _lengths(answers: Sequence[Judged]) -> tuple[int, ...]:
    return tuple(len(one.rollout.token_ids) for one in answers)


def run_estimate(config: DictConfig, run: Run, tried: Tried) -> dict[str, Any]:
    """Returns seconds by phase, memory and cost of the whole run on this machine, and what hindsight finds.

    Args:
        config: Configuration of the whole run.
        run: The trial run.
        tried: Results of the trial.
    """
    data: Any = run.data
    batch = tried.typical()
    per_epoch = limited(
        config.trainer.limit_train_batches, math.ceil(len(data.train) / data.prompts_per_batch)
    )
    batches = _batches(config, per_epoch, batch.answers, batch.answer_tokens)
    heldout = limited(config.trainer.limit_val_batches, math.ceil(len(data.heldout) / data.prompts_per_batch))
    validations = 2 + _validations(config, batches, per_epoch)  # before and after the run
    heldout_share = validations * heldout / max(1, min(heldout, HELDOUT_BATCHES))  # whole run over trial
    seconds = {phase: spent * batches for phase, spent in batch.seconds.items()}
    seconds["validate"] = tried.heldout_seconds * heldout_share
    judged = Counter({name: value * batches for name, value in batch.usage.items()})
    judged.update({name: value * heldout_share for name, value in usage_of(tried.heldout).items()})
    gold = {name: value * heldout_share for name, value in tried.gold_usage.items()}
    judged.update(gold)
    gated = config.module.hindsight_gate.only_flat  # only flat groups have revisions: no fair comparison
    return {
        "prompts": {"train": len(data.train), "heldout": len(data.heldout)},
        "sources": mix.in_words() if (mix := getattr(data, "mix", None)) else [],
        "uplift": None if gated else uplift(tried.groups, config.seed),
        "prompt": tried.prompt,
        "revision_prompt": tried.revision_prompt,
        "batches": batches,
        "validations": validations,
        "answers": batches * batch.answers,
        "batch_seconds": {name: round(spent, 3) for name, spent in batch.seconds.items()},
        "run_seconds": {name: round(spent, 1) for name, spent in seconds.items()}
        | {"total": round(sum(seconds.values()) - _side_by_side(config, seconds), 1)},
        "binds": max(seconds, key=lambda name: seconds[name]),
        **_episodes(run, tried),
        "longest_update": {"tokens": tried.longest_tokens, "seconds": round(tried.longest_seconds, 3)},
        "memory_gib": {name.partition("/")[2]: round(value, 2) for name, value in tried.memory.items()},
        "judge": {name: round(value, 4) for name, value in judged.items()},
        "gold_judges": {name: round(value, 4) for name, value in gold.items()},  # a part of the former
    }


def _episodes(run: Run, tried: Tried) -> dict[str, Any]:
    """What became of the episodes of the trial; {} for answers in one turn."""
    if not run.module.stages.environment.replies:
        return {}
    played = [one.rollout for group in tried.groups for one in group.attempts]
    return {"episodes": {name: round(value, 3) for name, value in episode_metrics(played).items()}}


def _side_by_side(config: DictConfig, seconds: Mapping[str, float]) -> float:
    """Returns the seconds in which batches are drawn while others are trained on."""
    if not config.rollout.get("batches_ahead"):
        return 0.0
    drawing = sum(seconds.get(phase, 0.0) for phase in ("sample", "judge", "environment", "revise"))
    return min(drawing, seconds.get("update", 0.0))


def gpu_estimate(
    config: DictConfig, run: Run, tried: Tried, report: Mapping[str, Any], gpu: GPU, size: ModelSize
) -> dict[str, Any]:
    """Returns seconds, hours, price and GiB of the same batches on other GPUs, by formulas."""
    module, batch, devices = run.module, tried.typical(), config.cost.devices
    assert module.policy is not None
    work = Work(
        rounds=batch.rounds,
        prompt_tokens=batch.prompt_tokens,
        trained_tokens=batch.trained_tokens,
        micro_batch_tokens=longest_micro_batch(module.stages, module.updater.micro_batch_tokens),
        judge_seconds=batch.seconds.get("judge", 0.0),
        environment_seconds=batch.seconds.get("environment", 0.0),
    )
    settings = replace(
        settings_of(module, module.policy, run.trainer.strategy),
        shards=_shards(run.trainer.strategy),
        updates_per_batch=config.module.updates_per_batch,
        engine=ENGINES.get(config.sampler._target_, "transformers"),
        sleep=config.sampler.get("sleep", False) is not False,  # null: if it shares the trainer's GPU
        tensor_parallel=config.sampler.get("tensor_parallel_size", 1),
        max_at_once=config.sampler.get("max_num_seqs", 256),
        whole_groups=whole_groups(module.stages),
    )
    costs = estimate(size, work, settings, gpu, devices)
    total = sum(costs["seconds"].values())
    hours = total * report["batches"] / 3600
    return {
        "gpu": config.cost.gpu,
        "devices": devices,
        "parameters": size.parameters,
        "batch_seconds": {name: round(spent, 3) for name, spent in costs["seconds"].items()},
        "run_hours": round(hours, 3),
        "gpu_hours": round(hours * devices, 2),
        "price": None if config.cost.price is None else round(hours * devices * config.cost.price, 2),
        "gib_of_one": {name: round(value, 2) for name, value in costs["gib"].items()},
        "fits": costs["fits"],
        "weights_seconds": round(costs["weights_seconds"], 3),
        "engines_idle": round(costs["idle"], 3),
        "host_gib": round(costs["host_gib"], 3),
        "binds": max(costs["seconds"], key=lambda name: costs["seconds"][name]),
        "says": binding(size, work, settings, gpu, devices),
    }


def _shards(strategy: Strategy) -> int | None:
    """Returns how many of the GPUs would hold one copy of the model; None for all."""
    named = strategy.shards if isinstance(strategy, FSDPStrategy) else "all"
    return {"all": None, "node": GPUS_OF_A_NODE}[named] if isinstance(named, str) else named


def _batches(config: DictConfig, per_epoch: int, answers: float, tokens: float) -> int:
    limits = [per_epoch * config.trainer.max_epochs] if (config.trainer.max_epochs or -1) > 0 else []
    if config.trainer.max_steps > 0:
        limits.append(math.ceil(config.trainer.max_steps / config.module.updates_per_batch))
    for callback in make(config.callbacks).values():
        if isinstance(callback, AnswerBudget):
            spent = ((callback.answers, answers), (callback.tokens, tokens))
            limits += [math.ceil(limit / each) for limit, each in spent if limit is not None and each]
    return min(limits, default=per_epoch)


def _validations(config: DictConfig, batches: int, per_epoch: int) -> int:
    """The validations during training. Lightning starts to count again in every epoch, unless
    check_val_every_n_epoch is null."""
    every = config.trainer.val_check_interval
    every = max(1, int(every * per_epoch)) if isinstance(every, float) else every
    epochs = config.trainer.check_val_every_n_epoch
    if epochs is None:
        return int(batches // every)
    whole, rest = divmod(batches, per_epoch)
    last = rest // every if (whole + 1) % epochs == 0 else 0
    return int(whole // epochs * (per_epoch // every) + last)


def show(report: Mapping[str, Any], path: Path) -> None:
    """Prints a report and its path."""
    console = Screen()
    for name in ("prompt", "revision_prompt"):
        if report[name]:
            console.rule(f"a {name.replace('_', ' ')} as the model sees it")
            console.print(Text(visible(report[name])))
    if report["uplift"]:
        console.rule("what hindsight finds before training (95 % intervals)")
        console.print(Text(report["uplift"]["says"]))
    console.rule("estimate")
    table = Table(
        "phase",
        "one batch, s",
        "the run, s",
        box=_box(console),
        title=f"{report['batches']} batches, {report['answers']} answers",
    )
    for name, spent in report["run_seconds"].items():
        once = report["batch_seconds"].get(name)
        table.add_row(name, "" if once is None else f"{once:.3f}", f"{spent:.1f}")
    console.print(table)
    lines = {
        "prompts": report["prompts"],
        **{f"source {number}": words for number, words in enumerate(report["sources"], start=1)},
        "lint findings": report["lint"] or "none",
        "slowest phase": report["binds"],
        "longest update": report["longest_update"],
        "peak memory, GiB": report["memory_gib"],
        "judging the run": report["judge"] or "free",
        "of this, gold judges": report["gold_judges"],
        "full report": path,
    }
    if not report["gold_judges"]:
        del lines["of this, gold judges"]
    if "episodes" in report:
        lines = {"an attempt's episode": report["episodes"], **lines}
    if "gpus" in report:
        _show_gpus(console, report["gpus"])
        if "episodes" in report:
            console.print(UNCOUNTED, soft_wrap=True)
    for name, value in lines.items():
        console.print(Text(f"{name}: {_words(value)}"), soft_wrap=True)


def _box(console: Screen) -> Box | None:
    """Frames are for terminals; a pipe gets plain lines."""
    return HEAVY_HEAD if console.is_terminal else None


def _show_gpus(console: Screen, report: Mapping[str, Any]) -> None:
    table = Table(
        "phase", "one batch, s", "of one GPU", "GiB", box=_box(console),
        title=f"{report['parameters'] / 1e9:.2f} billion parameters on {report['devices']} x {report['gpu']}",
    )  # fmt: skip
    left = [(name, f"{value:.3f}") for name, value in report["batch_seconds"].items()]
    right = [(name.replace("_", " "), f"{value:.2f}") for name, value in report["gib_of_one"].items()]
    for time_row, memory_row in zip_longest(left, right, fillvalue=("", "")):
        table.add_row(*time_row, *memory_row)
    console.print(table)
    price = "" if report["price"] is None else f", price {report['price']:.2f}"
    fits = "it fits" if report["fits"] else "IT DOES NOT FIT"
    lines = [f"{report['run_hours']:.2f} h, {report['gpu_hours']:.1f} GPU hours{price}; {fits}"]
    if report["devices"] > 1:
        lines += [
            f"engines idle for {100 * report['engines_idle']:.0f} % of sampling; "
            f"weights travel for {report['weights_seconds']:.3f} s of the update",
            f"host memory of each process for all answers: {report['host_gib']:.2f} GiB",
        ]
    lines.append(report["says"])
    console.print(Text("\n".join([*lines, FORMULAS])), soft_wrap=True)


def _words(value: Any) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
