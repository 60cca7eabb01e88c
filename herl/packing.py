"""Which rows a model can be trained on, found out by trying.

An architecture may make masks of its own, keep a state from token to token, or cap its scores. None of that
shows in its signature, and a row that leaks from one answer into the next raises no error.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import torch

from herl import attention
from herl.batch import Packing
from herl.distributed import gather
from herl.loss import PolicyLoss
from herl.precision import computes_exact_float32
from herl.scoring import Scorer
from herl.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_CONTEXT = 8192
"""Tokens of a context that is tried, at most: windows of attention beyond that are trusted."""

logger = logging.getLogger(__name__)


def choose_packing(model: PreTrainedModel, device: torch.device) -> Packing:
    """Returns the most economical packing under which the model computes what it computes for one answer
    at a time. Logs why it is not `shared`."""
    expected = _logprobs(model, "single", device)
    exact = computes_exact_float32(device, expected.dtype, model.dtype)
    allowed = 1e-3 if exact else 0.1  # nats
    reason = "its architecture does not attend through transformers' sdpa interface"
    candidates: tuple[Packing, ...] = ("shared", "packed")
    for packing in candidates:
        if packing == "packed" or attention.installed(model):
            try:
                # the largest of all ranks: their rows must be planned alike
                deviation = max(gather(float((_logprobs(model, packing, device) - expected).abs().max())))
            except NotImplementedError as error:
                reason = str(error)
            else:
                if deviation <= allowed:
                    return packing
                reason = f"its log-probs deviate by {deviation:.2g} nats"
        logger.warning("%s is not trained on %s rows: %s", type(model).__name__, packing, reason)
    return "single"


def _logprobs(model: PreTrainedModel, packing: Packing, device: torch.device) -> torch.Tensor:
    """Log-probs of four short answers to two contexts of random tokens, answer by answer."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    context = min(window + 8, MOST_CONTEXT)  # so that what lies outside a window is tried
    draw = random.Random(0)
    rollouts = []
    for prompt in range(2):
        prompt_ids = tuple(draw.randrange(config.vocab_size) for _ in range(context))
        for answer, length in enumerate((3, 4)):
            rollouts.append(
                Rollout(
                    id=f"{prompt}/{answer}",
                    task_id=str(prompt),
                    group_id=str(prompt),
                    prompt_ids=prompt_ids,
                    token_ids=tuple(draw.randrange(config.vocab_size) for _ in range(length)),
                    logprobs=(0.0,) * length,
                    text="",
                    finish_reason="length",
                    policy_version=0,
                    origin="policy",
                )
            )
    scorer = Scorer(
        policy=model,
        reference=None,
        loss=PolicyLoss(),
        temperature=1.0,
        max_tokens=2**31,
        packing=packing,
        device=device,
    )
    was_training = model.training
    model.eval()
    logprobs = scorer.own_logprobs(rollouts)
    model.train(was_training)
    return logprobs
