"""How many tokens a row of the update may have: as many as fit into the free memory of a GPU.

Longer rows are faster, up to a point, and repeat long contexts less. They change neither loss nor gradient
beyond rounding: what is free may differ from run to run, so give a number where runs must be equal bit for
bit.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from transformers import PreTrainedModel

from herl.distributed import gather, world_size
from herl.models.weights import is_sharded
from herl.update.gpu_cost import (
    LOGIT_BYTES,
    LOGITS_AT_ONCE,
    Settings,
    activation_bytes,
    bfloat16_weights,
    size_of,
)

CPU_TOKENS = 8192
MOST = 32768
"""Beyond that rows were no faster on an H100, for any size of model."""
FEWEST = 1024
FLOAT32_SHARE = 1.6
"""Activations in float32 over those in bf16-mixed."""
SHARE = 0.85
"""Of the free memory that is planned with; the allocator cannot use all."""

logger = logging.getLogger(__name__)


def row_tokens(
    given: int | Literal["auto"],
    policy: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> int:
    """Returns the tokens that a row may have, the same on every rank. All ranks must call it, right before an
    update: the sampler has left what memory it can.

    Args:
        given: The setting; a number is returned as it is.
        policy: What is trained, on `device`.
        optimizer: Of its parameters: whether its moments are in memory already.
        device: Of this rank.
    """
    if given != "auto":
        return given
    if device.type != "cuda":
        return CPU_TOKENS
    size = size_of(policy)
    learning = [p for p in policy.parameters() if p.requires_grad and p.device.type == "cuda"]
    still_to_come = 2.0 * 4 * sum(_numel(p) for p in learning if not optimizer.state.get(p))
    still_to_come += 4 * sum(_numel(p) for p in learning if p.grad is None)
    settings = Settings(
        checkpointing=policy.is_gradient_checkpointing,
        compiled=any(module._compiled_call_impl is not None for module in policy.modules()),
    )
    of_token, of_logit = activation_bytes(size, settings), float(LOGIT_BYTES)
    if not torch.is_autocast_enabled("cuda"):  # the formulas are those of bf16-mixed
        of_token, of_logit = FLOAT32_SHARE * of_token, 2 * of_logit
    elif policy.dtype == torch.float32:
        still_to_come += bfloat16_weights(size, settings, world_size() if is_sharded(policy) else 1)
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = SHARE * (free - still_to_come) - of_logit * LOGITS_AT_ONCE
    fitting = min(gather(int(room / of_token)))
    if fitting < FEWEST:
        logger.warning(
            "an estimated %d tokens of a row fit into the GPU's free memory; trying %d. "
            "model.gradient_checkpointing=true or a smaller sampler.gpu_memory_utilization make room",
            max(0, fitting),
            FEWEST,
        )
    tokens = max(FEWEST, min(MOST, 1 << max(fitting, 1).bit_length() - 1))
    logger.info("rows of the update have up to %d tokens (module.micro_batch_tokens=auto)", tokens)
    return tokens


def _numel(parameter: torch.Tensor) -> int:
    """Elements that this rank holds."""
    local: torch.Tensor = getattr(parameter, "_local_tensor", parameter)
    return local.numel()
