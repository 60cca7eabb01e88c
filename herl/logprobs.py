"""Stage 10: log-probabilities of the answer tokens of a micro-batch.

The body of the model runs once over the row; its head only where an answer token is predicted, and chunk by
chunk: no [N, vocabulary] tensor exists, and in backward each chunk is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import ModelOutput

from herl.attention import shared_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from herl.batch import MicroBatch

WHOLE_LOGITS = 2**25
"""Up to so many logits, 128 MiB in float32, nothing is computed twice: 220 tokens at a vocabulary of 150k."""

CHUNK_LOGITS = 2**24
"""Beyond that, logits in memory at once: 64 MiB in float32."""

PART_LOGITS = 2**21
"""Logits whose entropy is summed, or whose gradient is computed, at once."""

VIEWS = {f"{name}Backward0" for name in ("Select", "Slice", "Squeeze", "Unsqueeze", "UnsafeView", "View")}
FORGETFUL = {f"{name}Backward0" for name in ("Add", "Addmm", "Bmm", "Div", "Mm", "Mul", "ToCopy")}
"""Operations, by autograd's names, that pass their input on, and that keep no copy of their output."""


def answer_logprobs(
    model: PreTrainedModel, batch: MicroBatch, temperature: float, *, entropy_grad: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (logprobs [N], entropy [N]) of the answer tokens, in nats, in float32.

    Both are of the distribution at `temperature`, which must be the one that attempts are sampled at:
    otherwise the policy gradient is that of another policy.

    Args:
        entropy_grad: Whether the entropy carries gradient; without, it is a statistic.
    """
    # Through the model's own call, so that the hooks of a sharded one gather its weights.
    with _forward(model, partial(_by_chunks, model)):
        return model(batch, temperature, entropy_grad)  # type: ignore[no-any-return]


def _by_chunks(
    model: PreTrainedModel, batch: MicroBatch, temperature: float, entropy_grad: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    arguments: dict[str, Any] = {}
    if batch.packing == "shared":
        flex = batch.input_ids.is_cuda
        mask = shared_mask(batch.contexts, model.config.get_text_config(), batch.input_ids.device, flex=flex)
        arguments = {"attention_mask": mask, "contexts": batch.contexts}
    body = model.base_model(  # use_cache=True would let answers of a packed row see each other
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **arguments
    )
    # index_select: the backward of [..., index] adds up in any order, and no two runs would be the same
    hidden = body.last_hidden_state[0].index_select(0, batch.before)
    vocabulary = model.config.get_text_config().vocab_size
    whole = len(hidden) * vocabulary <= WHOLE_LOGITS
    size = max(1, len(hidden) if whole else CHUNK_LOGITS // vocabulary)
    compute: Callable[..., tuple[torch.Tensor, torch.Tensor]] = partial(
        _chunk, model, body, temperature=temperature, entropy_grad=entropy_grad
    )
    if torch.is_grad_enabled() and not whole:
        compute = partial(checkpoint, compute, use_reentrant=False)
    parts = [
        compute(part, ids) for part, ids in zip(hidden.split(size), batch.answer_ids.split(size), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk(
    model: PreTrainedModel,
    body: ModelOutput,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    *,
    temperature: float,
    entropy_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of some tokens, from the body's outputs that predict them, [n, width]."""
    logits = _logits(model, body, hidden).float()
    logits = logits if temperature == 1.0 else logits / temperature
    if not _overwritable(logits):
        logits = logits.clone()
    scores: tuple[torch.Tensor, torch.Tensor] = _Scores.apply(logits, ids, entropy_grad)  # type: ignore[no-untyped-call]
    return scores


def _overwritable(tensor: torch.Tensor) -> bool:
    """Whether the operation that computed a tensor does not need it for its own gradient.

    Within a checkpoint autograd does not notice that a saved tensor was overwritten.
    """
    node = tensor.grad_fn
    while node is not None and node.name() in VIEWS:
        node = node.next_functions[0][0]
    return node is None or node.name() in FORGETFUL


class _Scores(torch.autograd.Function):
    """Log-softmax at some ids, and entropy. The logits [n, vocabulary] become the distribution, and in
    backward the gradient: there is no second tensor of that size. Nothing else may need them."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, ids: torch.Tensor, entropy_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        entropy = logits.new_empty(len(logits), 1)
        for rows in _parts(logits):
            part = logits[rows]
            part -= part.logsumexp(-1, keepdim=True)
            entropy[rows] = -(part.exp() * part).sum(-1, keepdim=True)
        ctx.entropy_grad = entropy_grad
        ctx.save_for_backward(logits, ids, entropy)
        entropies = entropy[:, 0]
        if not entropy_grad:
            ctx.mark_non_differentiable(entropies)
        return logits.gather(-1, ids[:, None])[:, 0], entropies

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """d logprob = [id] - p and d entropy = -p (log p + entropy), by logits."""
        distribution, ids, entropy = ctx.saved_tensors
        logprob_gradient, entropy_gradient = (gradient[:, None] for gradient in gradients)
        for rows in _parts(distribution):
            part, factor = distribution[rows], -logprob_gradient[rows]
            if ctx.entropy_grad:
                factor = factor - entropy_gradient[rows] * (part + entropy[rows])
            part.exp_().mul_(factor)  # in place: a second backward is refused by autograd
        return distribution.scatter_add_(1, ids[:, None], logprob_gradient), None, None


def _parts(logits: torch.Tensor) -> Iterator[slice]:
    """Rows of a few logits each, so that what is computed on the way to a sum is small."""
    count = max(1, PART_LOGITS // logits.shape[1])
    return (slice(start, start + count) for start in range(0, len(logits), count))


def _logits(model: PreTrainedModel, body: ModelOutput, hidden: torch.Tensor) -> torch.Tensor:
    """The model's own forward with its body left out: the head with all scalings, [n, vocabulary]."""
    output = type(body)(**{**body, "last_hidden_state": hidden[None]})
    with _forward(model.base_model, lambda *_, **__: output):
        logits: torch.Tensor = type(model).forward(model, use_cache=False).logits[0]
        return logits


@contextmanager
def _forward(module: torch.nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Within the block a call of the module runs `function` between the module's hooks."""
    own = vars(module).get("forward")
    module.forward = function
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
