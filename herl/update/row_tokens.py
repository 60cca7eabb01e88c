"""Chooses the tokens per row of the update: as many as fit into the free memory of a GPU.

Longer rows are faster, up to a point, and repeat long contexts less. They change neither loss nor gradient
beyond rounding. Free memory may differ from run to run, so set a number if runs must be bit-identical.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from lightning.pytorch.strategies import Strategy
from transformers import PreTrainedModel

from herl.distributed import gather, world_size
from herl.models.compiled import is_compiled
from herl.models.quantized import elements, is_quantized
from herl.models.weights import is_sharded
from herl.update.gpu_cost import (
    LOGIT_BYTES,
    LOGITS_AT_ONCE,
    Settings,
    activation_bytes,
    bfloat16_weights,
    keeps_gathered,
    size_of,
    whole_gradients,
)

CPU_TOKENS = 8192
MAX_TOKENS = 32768
"""Longer rows were no faster on an H100, for any model size."""
MIN_TOKENS = 1024
FLOAT32_SHARE = 1.6
"""Activation memory in float32, relative to bf16-mixed."""
SHARE = 0.85
"""Share of the free memory to plan with, since the allocator cannot use all of it."""

logger = logging.getLogger(__name__)


def row_tokens(
    given: int | Literal["auto"],
    policy: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    strategy: Strategy,
) -> int:
    """Returns the most tokens of a row, the same on every rank.

    All ranks must call it, right before an update, when the sampler has freed the memory that it can.

    Args:
        given: The setting; a number is returned unchanged.
        policy: The model to be trained, on `device`.
        optimizer: The policy's optimizer, which may hold its moments in memory already.
        device: This rank's device.
        strategy: The trainer's strategy.
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
        compiled=is_compiled(policy),
        trained_share=sum(elements(p) for p in policy.parameters() if p.requires_grad) / size.parameters,
        quantized_share=sum(elements(p) for p in policy.parameters() if is_quantized(p)) / size.parameters,
        keeps_gathered=keeps_gathered(strategy),
        whole_gradients=whole_gradients(strategy),
    )
    of_token, of_logit = activation_bytes(size, settings), float(LOGIT_BYTES)
    shards = world_size() if is_sharded(policy) else 1
    if not torch.is_autocast_enabled("cuda"):  # the formulas are for bf16-mixed
        of_token, of_logit = FLOAT32_SHARE * of_token, 2 * of_logit
        still_to_come += 2 * bfloat16_weights(size, settings, shards) if shards > 1 else 0.0
    elif policy.dtype == torch.float32:
        still_to_come += bfloat16_weights(size, settings, shards)
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = SHARE * (free - still_to_come)
    with_all_logits = room / (of_token + of_logit * size.vocabulary)
    in_chunks = (room - of_logit * LOGITS_AT_ONCE) / of_token
    fitting = min(gather(int(max(with_all_logits, in_chunks))))
    if fitting < MIN_TOKENS:
        logger.warning(
            "the GPU's free memory fits rows of an estimated %d tokens; trying %d. "
            "model.gradient_checkpointing=true or a smaller sampler.gpu_memory_utilization makes room",
            max(0, fitting),
            MIN_TOKENS,
        )
    tokens = max(MIN_TOKENS, min(MAX_TOKENS, 1 << max(fitting, 1).bit_length() - 1))
    logger.info("rows of the update have up to %d tokens (module.micro_batch_tokens=auto)", tokens)
    return tokens


def _numel(parameter: torch.Tensor) -> int:
    """Returns the number of elements that this rank holds."""
    local: torch.Tensor = getattr(parameter, "_local_tensor", parameter)
    return local.numel()
