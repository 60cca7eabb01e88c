"""Stage 10: log-probabilities of the answer tokens of a micro-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from herl.batch import MicroBatch


def answer_logprobs(
    model: PreTrainedModel, batch: MicroBatch, temperature: float, *, entropy_grad: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (logprobs [N], entropy [N]) of the answer tokens, in nats, in float32.

    Both are of the distribution at `temperature`, which must be the one that attempts are sampled at:
    otherwise the policy gradient is that of another policy. Logits are computed for answer columns only,
    and through the model's own forward, so that its scalings and sharding hooks apply.

    Args:
        entropy_grad: Whether the entropy carries gradient; without, it is a statistic.
    """
    answer_len = batch.answer_mask.shape[1]
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=answer_len + 1,
    ).logits
    # The logits that predict answer column t stand one column to its left.
    kept = logits[:, :-1][batch.answer_mask].float() / temperature
    distribution = torch.log_softmax(kept, dim=-1)
    logprobs = distribution.gather(-1, batch.answer_ids[:, None])[:, 0]
    if not entropy_grad:
        distribution = distribution.detach()
    return logprobs, -(distribution.exp() * distribution).sum(-1)
