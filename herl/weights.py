"""The policy's weights as another engine loads them: whole tensors, adapters merged, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from herl.lora import has_adapters, merged


def named_weights(policy: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (name, tensor) under the names of the model without adapters.

    Shards are gathered one tensor at a time, so all ranks must read the stream to its end. Tied weights
    come once, under the name of the first of them. Buffers that are saved with the model come last.
    """
    layers = dict(policy.named_modules())
    adapted = has_adapters(policy)
    for name, tensor in policy.named_parameters():
        if not adapted:
            yield name, whole(tensor.detach())
        elif name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            yield f"{layer}.weight", whole(merged(layers[layer]))
        elif ".lora_" not in name:
            yield name.replace(".base_layer.", "."), whole(tensor.detach())
    saved = policy.state_dict()
    yield from ((name, buffer) for name, buffer in policy.named_buffers() if name in saved)


def tied_embeddings(policy: PreTrainedModel) -> str | None:
    """Returns the name of the input embeddings if the head shares them, else None."""
    if not policy.config.get_text_config().tie_word_embeddings:
        return None
    embeddings = policy.get_input_embeddings().weight
    return next(name for name, parameter in policy.named_parameters() if parameter is embeddings)


def with_head(
    named_tensors: Iterable[tuple[str, torch.Tensor]], tied: str | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Adds the head after the embeddings `tied` that it shares.

    vLLM wants it in every reload: without, it silently keeps the old one.
    """
    for name, tensor in named_tensors:
        yield name, tensor
        if name == tied:
            yield "lm_head.weight", tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the full tensor of a sharded one, on every rank; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether a rank holds only its part of the parameters."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def first_not_finite(module: torch.nn.Module) -> str:
    """Names the first weight that is not finite, or else the first gradient. All ranks must call it."""
    for what, tensors in (
        ("weight", ((name, p) for name, p in module.named_parameters())),
        ("gradient of", ((name, p.grad) for name, p in module.named_parameters())),
    ):
        for name, tensor in tensors:
            if tensor is not None and not bool(whole(torch.isfinite(tensor.detach()).all())):
                return f"the {what} {name}"
    return "no tensor"
