"""Computes a run's requirements on its sampler, and the GPU memory that the trainer needs beside it.

The module passes these to the sampler before `Sampler.start`. An engine on the trainer's card sizes its
context and memory by them. Memory is estimated by `herl.update.gpu_cost`; nothing is measured here.
"""

from __future__ import annotations

from typing import Protocol

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from transformers import PreTrainedModel

from herl.models.fsdp import FSDPStrategy
from herl.models.lora import has_adapters
from herl.models.pretrained import PretrainedModel
from herl.models.quantized import BYTES, elements, is_quantized
from herl.rollout.stages import Stages
from herl.sampler import CardNeeds, RunLimits
from herl.trainer_callbacks import callbacks_of
from herl.update.gpu_cost import (
    BF16,
    GIB,
    ModelSize,
    Settings,
    gathered_parameters,
    keeps_gathered,
    model_size,
    update_gib,
    whole_gradients,
)
from herl.update.loss.base import Loss
from herl.update.updater import Updater

PROBE_TOKENS = 512
"""Tokens needed by the probe that checks a refresh, unless the model's limit is lower."""


class Configured(Protocol):
    """The parts of a `herl.module.HerlModule` used here, with its policy loaded."""

    model: PretrainedModel
    policy: PreTrainedModel | None
    stages: Stages
    loss: Loss
    updater: Updater

    @property
    def trainer(self) -> L.Trainer: ...


def run_limits(module: Configured, *, trains: bool = True) -> RunLimits:
    """Returns the limits that the sampler must support, and the memory it must leave to the trainer.

    Args:
        module: The run's module, with its policy loaded.
        trains: False for a run that only evaluates and needs no memory for an update.
    """
    trainer, model_limit = module.trainer, module.model.max_tokens() or PROBE_TOKENS
    assert module.policy is not None
    return RunLimits(
        longest_tokens=max(longest_sequence(module.stages), min(PROBE_TOKENS, model_limit)),
        dtype=torch.bfloat16 if trainer.precision == "bf16-mixed" else module.policy.dtype,
        refreshed_every_batch=any(
            getattr(one, "refreshes_every_batch", False) for one in callbacks_of(trainer, object)
        ),
        card=_card_needs(module, module.policy, trains)
        if trainer.strategy.root_device.type == "cuda"
        else None,
    )


def longest_sequence(stages: Stages) -> int:
    """Returns the tokens of the longest possible prompt with its answer.

    Revision prompts are longer than those of attempts, and no prompt exceeds `max_prompt_tokens`.
    """
    return stages.plan.max_prompt_tokens + stages.longest_answer


def longest_micro_batch(stages: Stages, micro_batch_tokens: int | str) -> int:
    """Returns the tokens of the longest row of an update: the budget, unless a single answer exceeds it."""
    plan = stages.plan
    prompt, answer = plan.max_prompt_tokens, stages.longest_trained[1]
    budget = micro_batch_tokens if isinstance(micro_batch_tokens, int) else 0  # "auto" uses the free memory
    return min(prompt + answer * plan.attempts_per_prompt, max(budget, prompt + answer))


def settings_of(
    module: Configured, policy: PreTrainedModel, strategy: Strategy, *, trains: bool = True
) -> Settings:
    """Returns the run's settings that the formulas for memory and time need, without those of its sampler.

    Args:
        module: The run's module.
        policy: Its policy, or the outline of it.
        strategy: Its trainer's strategy.
        trains: False for a run that only evaluates.
    """
    counts = [(elements(one), trains and one.requires_grad, is_quantized(one)) for one in policy.parameters()]
    total = sum(n for n, _, _ in counts)
    learns = sum(n for n, learns, _ in counts if learns) / total
    packed = sum(n for n, _, packed in counts if packed) / total
    of_frozen = float(policy.dtype.itemsize)
    if module.model.quantization is not None:
        of_frozen += packed / (1 - learns) * (BYTES[module.model.quantization] - of_frozen)
    reference = module.loss.needs_reference
    return Settings(
        reference=reference,
        entropy_pass=module.loss.top_entropy_share < 1,
        second_model=reference and not has_adapters(policy),
        trained_share=learns,
        checkpointing=module.model.gradient_checkpointing,
        compiled=module.model.compile is not False,
        frozen_bytes=of_frozen if learns < 1.0 else 4,
        quantized_share=packed,
        batches_ahead=module.stages.plan.batches_ahead,
        keeps_gathered=keeps_gathered(strategy),
        whole_gradients=whole_gradients(strategy),
    )


def trainer_gib(
    size: ModelSize, tokens: float, settings: Settings, *, shards: int, copies: bool, offloads: bool
) -> dict[str, float]:
    """Returns the GiB that the trainer takes of its GPU at the peak of an update, by use.

    Args:
        size: The size of the model.
        tokens: Tokens of the longest row.
        settings: The run's settings; a run without updates trains a share of 0.
        shards: GPUs that share weights, gradients and moments.
        copies: Whether DDP keeps its own copies of gradients.
        offloads: Whether weights, gradients and moments are in host memory.
    """
    update = update_gib(size, tokens, settings, shards)
    if copies:
        update["weights_gradients_moments"] += 4 * size.parameters * settings.trained_share / GIB
    if offloads:
        update["weights_gradients_moments"] = 0.0
    return update


def _card_needs(module: Configured, policy: PreTrainedModel, trains: bool) -> CardNeeds:
    size, trainer = model_size(module.model.path), module.trainer
    settings = settings_of(module, policy, trainer.strategy, trains=trains)
    tokens = longest_micro_batch(module.stages, module.updater.micro_batch_tokens) if trains else 0
    strategy, several = trainer.strategy, trainer.world_size
    shards = strategy.shard_count(several) if isinstance(strategy, FSDPStrategy) else 1
    update = trainer_gib(
        size,
        tokens,
        settings,
        shards=shards,
        copies=isinstance(strategy, DDPStrategy) and several > 1,
        offloads=isinstance(strategy, FSDPStrategy) and strategy.cpu_offload,
    )
    gradients = 4 * size.parameters * settings.trained_share / shards / GIB  # freed after each step
    # what a refresh and its probe gather of a sharded model, with FSDP's copy in one piece
    gathered = 2 * BF16 * gathered_parameters(size, settings) / GIB if shards > 1 else 0.0
    return CardNeeds(
        parameters=size.parameters,
        kv_bytes=size.kv_bytes,
        resident_gib=max(0.0, update["weights_gradients_moments"] - gradients) + gathered,
        update_gib=sum(update.values()),
    )
