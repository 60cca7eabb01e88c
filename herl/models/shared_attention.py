"""Attention over rows in which several answers share one context.

A row holds contexts, each followed by its answers:

    [ context 1 | answer | answer | ... | context 2 | answer | ... ]

Every answer sees its context and itself, nothing else. Its positions continue from the context, so each is
computed as if it alone followed its context, and the context is computed once for all of them.

On a CPU, attention is blockwise: scaled dot-product attention over each context, then over its answers padded
to a common length, so the whole row never needs a mask. On a GPU, it is compiled flex attention with the
row's mask (`block_mask.py`), in any precision. Both are registered in transformers' attention interface, so
they work for any decoder that uses it, and `herl/update/packing_probe.py` tests them on the actual model.
Without shared contexts the interface behaves like its "sdpa".

Left out: FlashAttention over sequences of different lengths. On an H100 it was 1.3 times as fast for heads of
64 but slower for heads of 128, and its gradients differ from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from herl.models.block_mask import SharedContext, block_mask

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "herl"
"""Name of this attention in transformers' interface."""

FLEX = ("cuda",)
"""Device types that use flex attention; the others use the blockwise path."""

QUERY_BLOCK = 128
"""Context tokens whose attention is computed at once: the causal triangle in steps of this size."""


class SharedKeys(Protocol):
    """Keys and values of prompts that the rows of a batch share (`herl.sampler.prompt_cache`)."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Returns a layer's output, [rows, 1, heads, D], for the newest token of each row."""


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    *,
    contexts: Sequence[SharedContext] | None = None,
    prompts: SharedKeys | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Computes a layer's attention, with the signature of transformers' attention interface.

    Args:
        query: [B, heads, T, D].
        key, value: [B, key/value heads, T, D].
        attention_mask: The result of `shared_mask`, if there are contexts.
        contexts: The row's layout; None for an ordinary batch.
        prompts: Shared keys and values of the prompts, while rows are answers being sampled.
    """
    if prompts is not None:
        if settings.get("position_bias") is not None:
            raise NotImplementedError("attention scores with a position bias")
        layer = cast(int, module.layer_idx)
        return prompts.attend(layer, query, key, value, settings.get("scaling")), None
    if isinstance(attention_mask, BlockMask):
        return masked_attention(query, key, value, attention_mask, **settings), None
    if contexts is None:
        if settings.get("softcap") is not None or settings.get("s_aux") is not None:
            raise NotImplementedError(
                "attention scores that are capped or have sinks, both of which sdpa ignores"
            )
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    if attention_mask is None or attention_mask.numel() != 1:
        raise NotImplementedError("a mask that the architecture makes itself (Doge)")
    return blockwise_attention(query, key, value, contexts, **settings), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def install(model: PreTrainedModel) -> None:
    """Installs this attention, if the model's architecture calls transformers' interface as "sdpa" does."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if (
        model._supports_attention_backend
        and model.config._attn_implementation == "sdpa"
        and kinds <= {"full_attention", "sliding_attention"}
    ):
        model.set_attn_implementation(NAME)


def installed(model: PreTrainedModel) -> bool:
    """Whether the model uses the attention of this file."""
    return bool(model.config._attn_implementation == NAME)


def _kernel_options(width: int, dtype: torch.dtype, device: torch.device) -> Any:
    """Returns the settings of the kernels for heads of this width.

    Rows are padded to whole blocks. The compiler cannot know that, since lengths vary; once it does,
    forward and backward take two thirds of the time on an H100 for heads of 64, and 0.85 of it for heads of
    128. Block sizes are measured there, too. They beat torch's, which suit masks with fewer borders, by 1.2
    to 1.4 times for answers of 128 to 384 tokens after 600 of context.
    """
    options = {"IS_DIVISIBLE": True}
    if device.type != "cuda" or dtype == torch.float32 or width > 128:
        return options
    card = torch.cuda.get_device_properties(device)
    if (card.major, card.minor) != (9, 0):
        return options
    rows, stages, warps = (64, 3, 4) if width <= 64 else (128, 2, 8)
    return options | {
        "fwd_BLOCK_M": 64,
        "fwd_BLOCK_N": 64,
        "fwd_num_warps": 4,
        "fwd_num_stages": 3,
        "bwd_BLOCK_M1": 64,
        "bwd_BLOCK_N1": rows,
        "bwd_BLOCK_M2": rows,
        "bwd_BLOCK_N2": 64,
        "bwd_num_warps": warps,
        "bwd_num_stages": stages,
    }


_compiled_attention = torch.compile(flex_attention, dynamic=True, fullgraph=True)
"""With fullgraph, too many recompilations raise an error instead of falling back to the unfused path."""


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """Returns the output for a padded row of shared contexts, [1, T, heads, D], using flex attention.

    Its backward sums in a fixed order, so two runs compute the same gradients.

    Raises:
        NotImplementedError: the layer uses dropout on scores, caps or biases them, or has sinks.
    """
    if dropout or softcap is not None or s_aux is not None or position_bias is not None:
        raise NotImplementedError("attention scores that are dropped out, capped, biased or have sinks")

    if torch.is_autocast_enabled(query.device.type):  # rotary embeddings come out as float32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    output = _compiled_attention(
        query,
        key,
        value,
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=_kernel_options(query.shape[-1], query.dtype, query.device),
    )
    return output.transpose(1, 2)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the layout differs in every row, so it would be recompiled each time
def blockwise_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    contexts: Sequence[SharedContext],
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """Returns the attention's output for a row of shared contexts, [1, T, heads, D].

    Raises:
        NotImplementedError: the layer caps or biases its scores or has sinks, which blocks do not support.
    """
    if softcap is not None or s_aux is not None or position_bias is not None:
        raise NotImplementedError("attention scores that are capped, biased or have sinks")
    settings = {"scale": scaling, "dropout_p": dropout}
    # Split, not sliced: the gradient of every slice would be as long as the row.
    lengths = [context.end - context.start for context in contexts]
    pieces = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs: list[torch.Tensor] = []
    for context, (q, k, v) in zip(contexts, pieces, strict=True):
        borders = [context.answers[0] - context.start, context.end - context.answers[0]]
        (qc, qa), (kc, ka), (vc, va) = (tensor.split(borders, dim=2) for tensor in (q, k, v))
        outputs += _context_attention(qc, kc, vc, sliding_window, settings)
        outputs += _answer_attention(qa, (kc, ka), (vc, va), context.answer_lengths, sliding_window, settings)
    return torch.cat(outputs)[None]


def _context_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    settings: dict[str, Any],
) -> Iterator[torch.Tensor]:
    """Yields a context's outputs, block by block, [tokens, heads, D]; queries are [1, heads, C, D].

    Each token sees itself and the tokens before it.
    """
    for start in range(0, query.shape[2], QUERY_BLOCK):
        block = query[:, :, start : start + QUERY_BLOCK]
        end = start + block.shape[2]
        output = scaled_dot_product_attention(
            _stacked(block, key.shape[1]),
            key[:, :, :end],
            value[:, :, :end],
            attn_mask=_causal(start, end, window, query.device).repeat(query.shape[1] // key.shape[1], 1),
            **settings,
        )
        yield output.reshape(block.shape)[0].transpose(0, 1)


def _answer_attention(
    query: torch.Tensor,
    keys: tuple[torch.Tensor, torch.Tensor],
    values: tuple[torch.Tensor, torch.Tensor],
    lengths: list[int],
    window: int | None,
    settings: dict[str, Any],
) -> Iterator[torch.Tensor]:
    """Yields each answer's output, [length, heads, D]. An answer sees its context and itself.

    Padding needs no separate mask: it follows the answer, and no token sees what follows it.

    Args:
        query: [1, heads, A, D], the answers one after another.
        keys, values: Those of the context [1, shared heads, C, D], and those of the answers.
        lengths: Tokens of each answer.
    """

    def padded(tensor: torch.Tensor) -> torch.Tensor:  # [n, heads, longest, D]
        return pad_sequence(tensor[0].transpose(0, 1).split(lengths), batch_first=True).transpose(1, 2)

    def behind_context(context: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        return torch.cat([context.expand(len(lengths), -1, -1, -1), padded(answers)], dim=2)

    queries, shared_heads, context = padded(query), keys[0].shape[1], keys[0].shape[2]
    mask = _causal(context, context + max(lengths), window, query.device)
    output = scaled_dot_product_attention(
        _stacked(queries, shared_heads),
        behind_context(*keys),
        behind_context(*values),
        attn_mask=mask.repeat(query.shape[1] // shared_heads, 1),
        **settings,
    )
    for answer, length in zip(output.reshape(queries.shape).transpose(1, 2).unbind(), lengths, strict=True):
        yield answer[:length]


def _stacked(query: torch.Tensor, shared_heads: int) -> torch.Tensor:
    """Stacks heads that share keys as additional queries, [n, shared heads, heads x length, D], so that no
    key is repeated."""
    heads: torch.Tensor = query.unflatten(1, (shared_heads, -1))
    return heads.flatten(2, 3)


def _causal(start: int, end: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Returns which tokens before `end` each token from `start` on sees, [end - start, end], bool."""
    place = torch.arange(end, device=device)
    distance = place[start:, None] - place
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)


def shared_mask(
    contexts: Sequence[SharedContext], config: PreTrainedConfig, device: torch.device, *, flex: bool
) -> Any:
    """Returns the attention_mask to pass to a model together with `contexts`.

    transformers passes a four-dimensional mask on unchanged. Blockwise attention does not read it, so a
    single element will do; flex attention gets the row's layout, for each type of layer.
    """
    if not flex:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" not in kinds:
        return block_mask(contexts, None if kinds else window, device)
    windows = {kind: window if kind == "sliding_attention" else None for kind in kinds}
    return {kind: block_mask(contexts, windows[kind], device) for kind in kinds}
