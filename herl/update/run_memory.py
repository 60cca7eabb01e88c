"""Estimates the memory of a run before it loads a model, and finds out which settings would lower it.

The estimate is for answers of full length to the longest prompts. It is made where nothing is loaded yet, so
it can be compared with what is free. A GPU's engine is left out: it takes what the trainer leaves
(`herl.sampler.vllm_arguments`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import lightning as L

from herl.models.fsdp import FSDPStrategy
from herl.sampler import Sampler
from herl.sampler.transformers import TransformersSampler
from herl.sampler.vllm import VLLMSampler
from herl.update.card_needs import Configured, settings_of, trainer_gib
from herl.update.cpu_memory import Processes, Sampling, cpu_gib
from herl.update.free_memory import free_gib
from herl.update.gpu_cost import FLOAT32, LOGIT_BYTES, RESERVE_GIB, ModelSize, Settings, size_of
from herl.update.row_tokens import CPU_TOKENS, FLOAT32_SHARE, MIN_TOKENS

LORA_SHARE = 0.02
"""Share of the parameters that adapters of the default rank add to a small model."""
ENGINE_GIB = 1.0
"""A vLLM engine's own process on a CPU, without weights, keys and values."""
WORTH_SAYING = 0.97
"""A change is suggested if it lowers the memory to this share or less."""

MAX_CHANGES = 3
"""Changes that are suggested together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A setting that lowers the memory."""

    override: str
    gib: float
    """Memory of the run with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMemory:
    """The memory that a run needs, and what could lower it."""

    parts: Mapping[str, float]
    """GiB at the peak, by use."""
    free: float
    """GiB."""
    changes: tuple[Change, ...] = ()
    """Each fits alone; if none does, each comes on top of those before it."""
    together: bool = False
    """Whether the changes are to be made together."""

    @property
    def total(self) -> float:
        """GiB at the peak."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that the memory of a run depends on."""

    settings: Settings
    sampling: Sampling
    processes: Processes
    budget: int
    """Tokens of a row of the update, unless a single answer is longer; 0 without updates."""
    prompt: int
    """Tokens of the longest prompt."""
    answer: int
    """Most tokens of an attempt after its prompt."""
    answer_key: str = "rollout.attempt.max_new_tokens"
    """The key that sets `answer`."""
    least_answer: int = 1
    """The least that it may be set to."""
    group: int
    """Attempts at a prompt."""
    groups: int
    """Groups in an optimizer step."""

    def row_tokens(self) -> int:
        """Returns the tokens of the longest row; each process gets at least one row of a step."""
        if not self.budget:
            return 0
        one = self.prompt + self.answer
        step = math.ceil(self.groups * (self.prompt + self.group * self.answer) / self.processes.world_size)
        return max(one, min(self.budget, step))


Gib = Callable[[Plan], Mapping[str, float]]
"""Returns the GiB of a plan by use."""


def run_memory(
    module: Configured,
    trainer: L.Trainer,
    prompts_per_batch: int,
    prompt_tokens: int,
    *,
    trains: bool = True,
) -> RunMemory:
    """Returns the memory that a run needs on this machine or on each GPU, and what is free.

    Args:
        module: The run's module. No model needs to be loaded.
        trainer: The run's trainer.
        prompts_per_batch: Prompts that are answered together, by all ranks.
        prompt_tokens: Tokens of the longest prompt.
        trains: False for a run that only evaluates.
    """
    outline = module.model.outline()
    size = size_of(outline)
    on_cpu = trainer.strategy.root_device.type == "cpu"
    settings = settings_of(module, outline, trainer.strategy, trains=trains)
    plan = _plan(module, trainer, settings, prompts_per_batch, prompt_tokens, trains=trains, on_cpu=on_cpu)
    gib = _of_cpu(size) if on_cpu else _of_gpu(size, trainer)
    free = free_gib(trainer.strategy.root_device)
    found = RunMemory(parts=gib(plan), free=free)
    if found.total <= free:
        return found
    return advised(found, plan, gib, on_cpu=on_cpu, lora=module.model.lora is not None)


def advised(found: RunMemory, plan: Plan, gib: Gib, *, on_cpu: bool, lora: bool) -> RunMemory:
    """Returns a run's memory with the settings that lower it, those that lower it most first.

    Args:
        found: The memory of the run, which exceeds what is free.
        plan: The run.
        gib: The memory of a plan.
        on_cpu: Whether the run is on a CPU.
        lora: Whether only adapters are trained.
    """

    def total(one: Plan) -> float:
        return sum(gib(one).values())

    def changes(now: Plan) -> list[tuple[Change, Plan]]:
        made = _changes(now, lambda one: total(one) <= found.free, on_cpu=on_cpu, lora=lora)
        known = [(Change(override=name, gib=total(after)), after) for name, after in made]
        known = [(change, after) for change, after in known if change.gib <= WORTH_SAYING * total(now)]
        return sorted(known, key=lambda one: one[0].gib)

    single = [change for change, _ in changes(plan)]
    fitting = tuple(change for change in single if change.gib <= found.free)
    if fitting or not single:
        return replace(found, changes=fitting)
    steps: list[Change] = []
    while len(steps) < MAX_CHANGES and (more := changes(plan)) and (not steps or steps[-1].gib > found.free):
        change, plan = more[0]
        key = change.override.partition("=")[0]
        steps = [step for step in steps if step.override.partition("=")[0] != key] + [change]
    return replace(found, changes=tuple(steps), together=True)


def _changes(
    plan: Plan, fits: Callable[[Plan], bool], *, on_cpu: bool, lora: bool
) -> Iterator[tuple[str, Plan]]:
    """Yields settings that are not chosen yet, each with the plan it leads to."""
    row, one, sampling = plan.row_tokens(), plan.prompt + plan.answer, plan.sampling
    if row > one and (on_cpu or plan.budget > MIN_TOKENS):
        budgets = [tokens for tokens in (4096, 2048, 1024, 512) if one <= tokens < row] or [one]
        plans = [replace(plan, budget=tokens) for tokens in budgets]
        chosen = next((after for after in plans if fits(after)), plans[-1])
        yield f"module.micro_batch_tokens={chosen.budget}", chosen
    elif row == one:
        half = max(plan.answer // 2, plan.least_answer)
        shorter = replace(sampling, answer_tokens=half)
        yield f"{plan.answer_key}={half}", replace(plan, answer=half, sampling=shorter)
    if row and not plan.settings.checkpointing:
        checkpointing = replace(plan.settings, checkpointing=True)
        yield "model.gradient_checkpointing=true", replace(plan, settings=checkpointing)
    if row and not lora and plan.settings.trained_share > LORA_SHARE:
        adapters = replace(plan.settings, trained_share=LORA_SHARE, second_model=False)
        yield "lora=lora", replace(plan, settings=adapters)
    if lora and not on_cpu and plan.settings.frozen_bytes > 2 and not plan.settings.quantized_share:
        yield "model.dtype=bfloat16", replace(plan, settings=replace(plan.settings, frozen_bytes=2))
    if sampling.packs:
        yield "sampler.pack_weights=false", replace(plan, sampling=replace(sampling, packs=False))
    if (batch := sampling.answers // 4) > 0:
        fewer = replace(sampling, answers=batch, prompts=math.ceil(sampling.prompts / 4))
        yield f"sampler.batch_size={batch}", replace(plan, sampling=fewer)
    if on_cpu and plan.processes.here > 1:
        yield "trainer.devices=1", replace(plan, processes=Processes())
    if not on_cpu and plan.processes.shards < plan.processes.world_size:
        all_shards = replace(plan.processes, shards=plan.processes.world_size)
        yield "strategy=fsdp", replace(plan, processes=all_shards)


def _plan(
    module: Configured,
    trainer: L.Trainer,
    settings: Settings,
    prompts_per_batch: int,
    prompt_tokens: int,
    *,
    trains: bool,
    on_cpu: bool,
) -> Plan:
    updater, rollout = module.updater, module.stages.plan
    strategy = trainer.strategy
    processes = Processes(
        here=trainer.num_devices if on_cpu else 1,
        world_size=trainer.world_size,
        shards=strategy.shard_count(trainer.world_size) if isinstance(strategy, FSDPStrategy) else 1,
    )
    answer_key, answer = module.stages.longest_trained
    least = {
        "environment.max_tokens": rollout.longest_turn[1],
        "rollout.revision.max_new_tokens": rollout.attempt.max_new_tokens,
    }
    budget = updater.micro_batch_tokens
    if budget == "auto":
        budget = CPU_TOKENS if on_cpu else MIN_TOKENS
    prompts = math.ceil(prompts_per_batch / trainer.world_size)
    answers = prompts * (rollout.attempts_per_prompt if trains else 1)
    sampling = _sampling(module.stages.sampler, answers, prompts, sharded=isinstance(strategy, FSDPStrategy))
    return Plan(
        settings=settings,
        sampling=replace(sampling, prompt_tokens=prompt_tokens, answer_tokens=answer),
        processes=processes,
        budget=int(budget) if trains else 0,
        prompt=prompt_tokens,
        answer=answer,
        group=rollout.attempts_per_prompt,
        groups=math.ceil(prompts_per_batch / updater.updates_per_batch),
        answer_key=answer_key,
        least_answer=least.get(answer_key, 1),
    )


def _sampling(sampler: Sampler, answers: int, prompts: int, *, sharded: bool) -> Sampling:
    """Returns what a sampler needs on a CPU; an unknown one, as one elsewhere, nothing."""
    if isinstance(sampler, TransformersSampler):
        at_once = min(sampler.batch_size, answers)
        return Sampling(
            held_copies=int(sharded or sampler.own_weights),
            packs=sampler.pack_weights,
            answers=at_once,
            prompts=math.ceil(prompts * at_once / max(1, answers)),
        )
    if isinstance(sampler, VLLMSampler):
        return Sampling(held_copies=1, held_gib=ENGINE_GIB + (sampler.kv_cache_gib or 1.0))
    return Sampling()


def _of_cpu(size: ModelSize) -> Gib:
    return lambda plan: cpu_gib(size, plan.row_tokens(), plan.settings, plan.sampling, plan.processes)


def _of_gpu(size: ModelSize, trainer: L.Trainer) -> Gib:
    """Returns the memory of one GPU, by use."""
    bf16 = trainer.precision == "bf16-mixed"
    offloads = isinstance(trainer.strategy, FSDPStrategy) and trainer.strategy.cpu_offload

    def gib(plan: Plan) -> dict[str, float]:
        several = plan.processes.shards
        copies = plan.processes.world_size > 1 and several == 1
        found = trainer_gib(
            size, plan.row_tokens(), plan.settings, shards=several, copies=copies, offloads=offloads
        )
        if not bf16:  # the formulas are for bf16-mixed
            found["activations"] *= FLOAT32_SHARE
            found["logits"] *= FLOAT32 / LOGIT_BYTES
            found["bfloat16_weights"] *= several > 1
        return found | {"reserve": RESERVE_GIB}

    return gib
