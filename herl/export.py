"""Writes a policy as a Hugging Face folder: whole with adapters merged, or the adapters alone."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from herl.distributed import rank, together
from herl.errors import ConfigError
from herl.lora import has_adapters
from herl.weights import named_weights, whole


def save_pretrained(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    adapter: bool = False,
) -> None:
    """Writes what transformers, peft and vLLM load. All ranks must call it; rank 0 writes.

    Args:
        policy: Whole or sharded, with or without adapters.
        tokenizer: Its tokenizer, chat template included.
        folder: Where to; made if it is not there.
        adapter: Write the adapters alone, in peft's format, to be loaded on top of the base model.

    Raises:
        ConfigError: the adapters of a policy without any are asked for.
    """
    if adapter and not has_adapters(policy):
        raise ConfigError("adapter: expected a policy with adapters (lora=lora), got one without")
    stream = named_weights(policy)
    if adapter:
        own = ((name, p) for name, p in policy.named_parameters() if ".lora_" in name)
        stream = ((name, whole(parameter.detach())) for name, parameter in own)
    weights = {name: tensor.cpu() for name, tensor in stream}
    together(lambda: _write(policy, tokenizer, folder, weights, adapter))


def _write(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    weights: dict[str, torch.Tensor],
    adapter: bool,
) -> None:
    if rank() > 0:
        return
    target = policy
    if not adapter:
        target = AutoModelForCausalLM.from_config(policy.config, dtype=policy.dtype)
        target.generation_config = policy.generation_config
        target.load_state_dict(weights, strict=False)  # tied weights come under one name
        weights = target.state_dict()
    target.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
