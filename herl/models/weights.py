"""Streams the policy's weights for another engine: unsharded, adapters merged, under a checkpoint's names.

The weights in memory differ from those in a checkpoint: some architectures keep all experts of a layer in one
tensor, or use other names. Engines expect the checkpoint's form. Each block is converted back as it is
streamed, by transformers' own rules, so that only one block is gathered at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from herl.models.lora import adapted_weights, has_adapters, merged
from herl.models.quantized import dequantized, loaded_shape, quantized_layers

BLOCK_NAME = re.compile(r"(.*?\.\d+)\.")
"""Matches the part of a parameter's name that names its block, such as model.layers.7."""


@dataclass(frozen=True, slots=True)
class _Weight:
    """A weight of the policy: its names without adapters, a tensor of its shape, and how to read it."""

    names: tuple[str, ...]
    like: torch.Tensor
    read: Callable[[], torch.Tensor]


def misfit(own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    """Returns what is wrong with weights that were found for a model; "" if they fit.

    Args:
        own: The model's, by name. Of weights that are tied, one is enough.
        found: Those to be loaded.
    """
    there = {tensor.data_ptr() for name, tensor in own.items() if name in found} - {0}  # 0 for all shards
    absent = [name for name, tensor in own.items() if name not in found and tensor.data_ptr() not in there]
    strange = [name for name in found if name not in own]
    if absent or strange:
        return f"where {absent[:3]} are missing and {strange[:3]} are unknown"
    others = [name for name, tensor in found.items() if tensor.shape != own[name].shape]
    if not others:
        return ""
    first = others[0]
    return f"where {first} has the shape {tuple(found[first].shape)} for {tuple(own[first].shape)}"


def named_weights(
    policy: PreTrainedModel, dtype: torch.dtype | None = None, *, checkpoint: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (name, tensor), adapters merged.

    Shards are gathered block by block, so all ranks must read the stream to its end. A head tied to the
    embeddings is included under its own name; otherwise vLLM would silently keep an old one.

    Args:
        policy: The model, sharded or not.
        dtype: Type of the streamed parameters, which are cast before they are gathered: an engine in
            bfloat16 needs half the traffic. None for the policy's type. Buffers are not cast, nor are
            parameters that transformers always keeps in float32.
        checkpoint: Use the names and shapes of a checkpoint instead of the policy's.
    """
    convert = checkpoint and _is_converted(policy)
    for block in _blocks(policy, grouped=convert):
        tensors: dict[str, torch.Tensor] = {}
        for weight in block:
            tensor = whole(_cast(policy, weight, dtype))
            tensors |= dict.fromkeys(weight.names, tensor)
        yield from (revert_weight_conversion(policy, tensors) if convert else tensors).items()


def weight_shapes(policy: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Returns the stream of `named_weights` as tensors without data; tied names share one tensor."""
    convert = _is_converted(policy)
    shapes: dict[str, torch.Tensor] = {}
    for block in _blocks(policy, grouped=convert):
        tensors: dict[str, torch.Tensor] = {}
        for weight in block:
            tensors |= dict.fromkeys(weight.names, torch.empty(weight.like.shape, device="meta"))
        shapes |= revert_weight_conversion(policy, tensors) if convert else tensors
    return shapes


def _is_converted(policy: PreTrainedModel) -> bool:
    """Whether the policy's parameters differ from its checkpoint's in name or shape."""
    conversions = getattr(policy, "_weight_conversions", None)
    if conversions is None:  # not loaded from a checkpoint
        conversions = get_model_conversion_mapping(policy, add_legacy=False)
    return bool(conversions)


def _blocks(policy: PreTrainedModel, *, grouped: bool) -> Iterator[list[_Weight]]:
    """Yields the weights one by one, or grouped by block, as a conversion may need them."""
    blocks: dict[str, list[_Weight]] = {}
    for weight in _weights(policy):
        found = BLOCK_NAME.match(weight.names[0]) if grouped else None
        blocks.setdefault(found[1] if found else weight.names[0], []).append(weight)
    yield from blocks.values()


def _weights(policy: PreTrainedModel) -> Iterator[_Weight]:
    adapted = adapted_weights(policy) if has_adapters(policy) else {}
    packed = quantized_layers(policy)
    embeddings, head = policy.get_input_embeddings(), policy.get_output_embeddings()
    head_name = next((name for name, layer in policy.named_modules() if layer is head), None)
    for name, parameter in policy.named_parameters():
        if adapted and ".lora_" in name:
            continue
        names = [name]
        if head_name is not None and parameter is head.weight and parameter is embeddings.weight:
            names.append(f"{head_name}.weight")
        read = partial(merged, adapted[id(parameter)]) if id(parameter) in adapted else parameter.detach
        like = parameter
        if (layer := packed.get(id(parameter))) is not None:
            like = torch.nn.Parameter(torch.empty(loaded_shape(layer), device="meta"), requires_grad=False)
            read = read if id(parameter) in adapted else partial(dequantized, layer)
        plain = (each.replace("base_layer.", "") if adapted else each for each in names)
        yield _Weight(tuple(plain), like, read)
    saved = policy.state_dict()
    for name, buffer in policy.named_buffers():
        if name in saved:
            yield _Weight((name,), buffer, buffer.detach)


def _cast(policy: PreTrainedModel, weight: _Weight, dtype: torch.dtype | None) -> torch.Tensor:
    tensor = weight.read()
    if dtype is None or not isinstance(weight.like, torch.nn.Parameter) or not tensor.is_floating_point():
        return tensor
    kept = set(policy._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        kept |= set(policy._keep_in_fp32_modules or ())
    if any(re.search(pattern, weight.names[0]) for pattern in kept):
        return tensor
    return tensor.to(dtype)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the full tensor of a sharded one, on every rank; other tensors unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether a rank holds only a shard of each parameter."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def first_not_finite(module: torch.nn.Module) -> str:
    """Names the first weight that is not finite, or else the first gradient. All ranks must call it."""
    for kind, tensors in (
        ("weight", ((name, p) for name, p in module.named_parameters())),
        ("gradient of", ((name, p.grad) for name, p in module.named_parameters())),
    ):
        for name, tensor in tensors:
            if tensor is not None and not bool(whole(torch.isfinite(tensor.detach()).all())):
                return f"the {kind} {name}"
    return "no tensor"
