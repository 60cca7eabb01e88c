"""Stage 10: log-probabilities of the answer tokens of a micro-batch.

The model's body runs once over the row. Its head runs only where an answer token is predicted. Large rows are
computed in chunks, which backward recomputes, so no [N, vocabulary] tensor exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import ModelOutput

from herl.models.block_mask import padding
from herl.models.body import body as body_of
from herl.models.forward_swap import forward_swapped
from herl.models.shared_attention import FLEX, installed, shared_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from herl.update.batch import MicroBatch

WHOLE_LOGITS = {"cpu": 2**25, "cuda": 2**32}
"""Up to this many logits nothing is recomputed: 128 MiB in float32 on a CPU, 8 GiB in bfloat16 on a GPU."""

LONGEST_TENSOR = 2**31 - 1
"""Most logits in one tensor: a GPU's kernels count elements in 32 bits."""

CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**29}
"""Maximum number of logits in memory at once beyond that."""

PART_LOGITS = 2**21
"""Number of logits processed at once on a CPU, for statistics and for gradients."""

VIEWS = {f"{name}Backward0" for name in ("Select", "Slice", "Squeeze", "Unsqueeze", "UnsafeView", "View")}
VIEWS |= {"SqueezeBackward1"}  # along one dimension
FORGETFUL = {f"{name}Backward0" for name in ("Add", "Addmm", "Bmm", "Div", "Mm", "Mul", "ToCopy")}
"""Operations, by autograd's names, that return views of their input, and that do not save their output."""


def answer_logprobs(
    model: PreTrainedModel, batch: MicroBatch, temperature: float, *, entropy_grad: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (logprobs [N], entropy [N]) of the answer tokens, in nats, in float32.

    Both describe the distribution at `temperature`, which must be the one attempts are sampled at;
    otherwise the policy gradient is that of another policy.

    Args:
        entropy_grad: Whether the entropy carries a gradient; if not, it is only a statistic.
    """
    with forward_swapped(model, partial(_by_chunks, model)):
        return model(batch, temperature, entropy_grad)  # type: ignore[no-any-return]


def _by_chunks(
    model: PreTrainedModel, batch: MicroBatch, temperature: float, entropy_grad: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    device = batch.input_ids.device.type
    body = _body(model, batch)
    # embedding, not indexing or index_select: its backward sums in a fixed order on every device
    hidden = torch.nn.functional.embedding(batch.before, body.last_hidden_state[0])
    vocabulary = model.config.get_text_config().vocab_size
    whole = len(hidden) * vocabulary <= WHOLE_LOGITS[device]
    size = max(1, (LONGEST_TENSOR if whole else CHUNK_LOGITS[device]) // vocabulary)
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


def _body(model: PreTrainedModel, batch: MicroBatch) -> Any:
    """Runs the model without its head; the last hidden state is [1, T, width], with padding at the end."""
    ids, positions, arguments = batch.input_ids, batch.position_ids, dict[str, Any]()
    flex = ids.device.type in FLEX and installed(model) and batch.packing != "single"
    if flex or batch.packing == "shared":
        config = model.config.get_text_config()
        mask = shared_mask(batch.contexts, config, ids.device, flex=flex)
        # not both, or blocks would be recompiled for each number of contexts
        arguments = {"attention_mask": mask} | ({} if flex else {"contexts": batch.contexts})
    if flex:
        more = (0, padding(ids.shape[1]))
        ids, positions = pad(ids, more), pad(positions, more)
    # use_cache=True would let answers of a packed row see each other
    return body_of(model)(input_ids=ids, position_ids=positions, use_cache=False, **arguments)


def _chunk(
    model: PreTrainedModel,
    body: ModelOutput,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    *,
    temperature: float,
    entropy_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns log-probs and entropies of some tokens from the hidden states [n, width] predicting them."""
    logits = _logits(model, body, hidden)
    if not _overwritable(logits):
        logits = logits.clone()
    scores: tuple[torch.Tensor, torch.Tensor] = _Scores.apply(logits, ids, temperature, entropy_grad)  # type: ignore[no-untyped-call]
    return scores


def _overwritable(tensor: torch.Tensor) -> bool:
    """Whether a tensor is not needed for the gradient of the operation that computed it.

    Inside a checkpoint, autograd does not notice that a saved tensor was overwritten.
    """
    node = tensor.grad_fn
    while node is not None and node.name() in VIEWS:
        node = node.next_functions[0][0]
    return node is None or node.name() in FORGETFUL


class _Scores(torch.autograd.Function):
    """Log-softmax at given ids, and entropy. Backward overwrites the logits [n, vocabulary] with their
    gradient to avoid a second tensor of that size, so nothing else may need them."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, ids: torch.Tensor, temperature: float, entropy_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        statistics = _fused(_statistics) if logits.is_cuda else _statistics
        parts = [statistics(logits[rows], ids[rows], temperature) for rows in _parts(logits)]
        logprobs, entropies, normalizers = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.settings = temperature, entropy_grad
        ctx.save_for_backward(logits, ids, normalizers, entropies)
        if not entropy_grad:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        logits, ids, normalizers, entropies = ctx.saved_tensors
        temperature, entropy_grad = ctx.settings
        write = _fused(_write_gradient) if logits.is_cuda else _write_gradient
        for rows in _parts(logits):
            of_entropy = gradients[1][rows] if entropy_grad else None
            known = ids[rows], normalizers[rows], entropies[rows], gradients[0][rows], of_entropy
            write(logits[rows], *known, temperature)  # in place, so autograd rejects a second backward
        return logits, None, None, None


def _statistics(
    logits: torch.Tensor, ids: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns log-probs at the ids, entropies, and log normalizers, [n] each, in float32."""
    scores = _scores(logits, temperature)
    normalizer = scores.logsumexp(-1, keepdim=True)
    logprobs = scores - normalizer
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return scores.gather(-1, ids[:, None])[:, 0] - normalizer[:, 0], entropy, normalizer[:, 0]


def _write_gradient(
    logits: torch.Tensor,
    ids: torch.Tensor,
    normalizer: torch.Tensor,
    entropy: torch.Tensor,
    of_logprob: torch.Tensor,
    of_entropy: torch.Tensor | None,
    temperature: float,
) -> None:
    """Writes d logprob = [id] - p and d entropy = -p (log p + entropy), by logits / temperature."""
    logprobs = _scores(logits, temperature) - normalizer[:, None]
    factor = -of_logprob[:, None]
    if of_entropy is not None:
        factor = factor - of_entropy[:, None] * (logprobs + entropy[:, None])
    gradient = logprobs.exp() * factor
    sampled = torch.arange(logits.shape[1], device=ids.device) == ids[:, None]
    gradient = torch.where(sampled, gradient + of_logprob[:, None], gradient)
    logits.copy_(gradient if temperature == 1.0 else gradient / temperature)


def _scores(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return logits.float() if temperature == 1.0 else logits.float() / temperature


@cache
def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function, so that a GPU reads the logits once or twice and writes no intermediates."""
    return torch.compile(function, dynamic=True)


def _parts(logits: torch.Tensor) -> Iterator[slice]:
    """On a CPU, yields slices of a few rows each, to keep intermediate tensors small."""
    count = len(logits) if logits.is_cuda else max(1, PART_LOGITS // logits.shape[1])
    return (slice(start, start + count) for start in range(0, len(logits), count))


def _logits(model: PreTrainedModel, body: ModelOutput, hidden: torch.Tensor) -> torch.Tensor:
    """Runs the model's forward without its body: the head with all scalings, [n, vocabulary]."""
    output = type(body)(**{**body, "last_hidden_state": hidden[None]})
    with forward_swapped(body_of(model), lambda *_, **__: output):
        logits: torch.Tensor = type(model).forward(model, use_cache=False).logits
        return logits.squeeze(0)  # the gradient of [0] would be a copy
