"""Frozen weights in 4 or 8 bits by bitsandbytes, under adapters in float32: QLoRA (arXiv:2305.14314).

Linear layers other than the head are quantized while they are loaded: to NF4 with double quantization, or to
int8 with one scale per output. Embeddings, norms and the head keep `model.dtype`.

    forward   dequantize(base) x + scaling B A x     policy, live sampler; the reference without adapters
    stream    dequantize(base) + scaling B A         other engines, and exported models

Both use the same dequantized weights, and multiply in the type of their inputs or of autocast. The products
of bitsandbytes would not do. In 8 bits they also round activations, and compute the largest ones apart, by
columns of a row that several answers share. In 4 bits, on CPUs with AVX512-BF16, they repack the weights to
sample, and round the scales when they pack them back.

Checkpoints hold adapters only. A resumed run quantizes the base again, to the same numbers on the same kind
of device.

Left out: peft's `prepare_model_for_kbit_training`. Adapters are float32 without it, norms keep `model.dtype`
as under any adapters, and recomputed activations need no gradient of their inputs (use_reentrant=False).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, cast

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from herl.errors import ConfigError

Quantization = Literal["4bit", "8bit"]
BYTES: dict[Quantization, float] = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
"""Bytes of a weight. In 4 bits, 64 share a scale of 8 bits, and 256 of these share one of 32."""
DTYPES = ("float32", "bfloat16", "float16")
"""Types that bitsandbytes dequantizes to."""
DEQUANTIZED = ("mxfp4",)
"""Kinds of quantized checkpoints that transformers can load as whole weights."""


def check_quantization(kind: Quantization, dtype: str) -> None:
    """Checks that weights can be quantized here, without importing bitsandbytes.

    Raises:
        ConfigError: a package is missing, or it does not support the type.
    """
    for package in ("bitsandbytes", "accelerate"):
        if find_spec(package) is None:
            raise ConfigError(
                f"model.quantization={kind} needs {package}: in a checkout, run pip install '.[quantized]'"
            )
    if dtype not in DTYPES:
        raise ConfigError(
            f"model.dtype: expected one of {', '.join(DTYPES)} with model.quantization={kind}, got '{dtype}'"
        )


def check_whole(config: PreTrainedConfig, path: str, kind: Quantization | None) -> None:
    """Checks that a model's checkpoint has whole weights.

    Raises:
        ConfigError: they are quantized.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    if method in DEQUANTIZED and kind is None:
        return
    raise ConfigError(
        f"model.path: expected a model that is not quantized, got '{path}', whose config.json has a "
        f"quantization_config ({method}). Name the model that it was made from; lora=lora "
        "model.quantization=4bit quantizes it while it is loaded"
    )


def loading_arguments(kind: Quantization, device: torch.device | str) -> dict[str, Any]:
    """Returns the arguments with which transformers quantizes a model on a device while it loads it."""
    if kind == "4bit":
        settings = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
    else:
        settings = BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": settings, "device_map": {"": str(device)}}


def prepare(model: PreTrainedModel) -> None:
    """Makes a quantized model's layers multiply with their dequantized weights, and names it a whole model in
    its configuration, which other models are made from."""
    for layer in quantized_layers(model).values():
        vars(layer)["forward"] = partial(_forward, layer)
    del model.config.quantization_config


def quantized_layers(model: torch.nn.Module) -> dict[int, torch.nn.Module]:
    """Returns the quantized layers, keyed by the id() of their weight."""
    own = ((layer, layer._parameters.get("weight")) for layer in model.modules())
    return {id(weight): layer for layer, weight in own if weight is not None and is_quantized(weight)}


def is_quantized(weight: torch.Tensor) -> bool:
    """Whether a parameter holds whole numbers that stand for others."""
    return not weight.is_floating_point()


def elements(parameter: torch.Tensor) -> int:
    """Returns how many numbers a parameter stands for: in 4 bits, two share an element."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def dequantized(layer: torch.nn.Module) -> torch.Tensor:
    """Returns a quantized layer's weight in the shape that it was loaded in, as a new tensor of `model.dtype`
    (4 bits) or float32 (8 bits)."""
    return in_loaded_shape(layer, factor(layer))


def factor(layer: torch.nn.Module) -> torch.Tensor:
    """Returns the weight that a quantized layer multiplies with, [out, in]; else as `dequantized`."""
    import bitsandbytes.functional as bnb

    weight = cast(Any, layer.weight)
    whole: torch.Tensor
    if (state := getattr(weight, "quant_state", None)) is None:
        whole = bnb.int8_vectorwise_dequant(weight.data, weight.SCB.to(weight.device))
    else:
        whole = bnb.dequantize_4bit(weight.data, state)
    return whole


def loaded_shape(layer: torch.nn.Module) -> torch.Size:
    """Returns the shape that a quantized layer's weight was loaded in."""
    whole = cast(Any, layer)
    return in_loaded_shape(layer, torch.empty(whole.out_features, whole.in_features, device="meta")).shape


def in_loaded_shape(layer: torch.nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Returns a weight, [out, in], as the layer's was loaded: GPT-2 has [in, out]."""
    return weight.T if issubclass(cast(Any, layer).source_cls, Conv1D) else weight


class _Product(torch.autograd.Function):
    """x W^T for a quantized weight W, dequantized in forward and again in backward, so that autograd does not
    keep whole weights."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
        ctx.layer = layer
        product: torch.Tensor = torch.nn.functional.linear(inputs, factor(layer).to(inputs.dtype))
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        [gradient] = gradients
        return gradient @ factor(ctx.layer).to(gradient.dtype), None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it cannot trace the state of a quantized weight
def _forward(layer: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = _Product.apply(inputs, layer)  # type: ignore[no-untyped-call]
    bias = cast(torch.Tensor | None, layer.bias)
    return product if bias is None else product + bias.to(product.dtype)


def keep_out_of_checkpoints(model: PreTrainedModel) -> None:
    """Leaves all weights but adapters out of the model's state, and does not miss them when it is loaded."""

    def write(module: torch.nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        buffers = {prefix + name for name, _ in module.named_buffers()}
        for name in [name for name in state if ".lora_" not in name and name not in buffers]:
            if name.startswith(prefix):
                del state[name]

    def read(module: torch.nn.Module, keys: Any) -> None:
        frozen = {name for name, _ in module.named_parameters(remove_duplicate=False) if ".lora_" not in name}
        kept = [key for key in keys.missing_keys if frozen.isdisjoint(_endings(key))]
        keys.missing_keys[:] = kept

    model.register_state_dict_post_hook(write)
    model.register_load_state_dict_post_hook(read)


def _endings(key: str) -> Iterator[str]:
    """Yields a name without the modules that hold the model: 'policy.a.b' -> 'policy.a.b', 'a.b', 'b'."""
    parts = key.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def outline(model: PreTrainedModel) -> None:
    """Gives the weights of a model on the meta device the types that they will have when it is quantized."""
    head = model.get_output_embeddings()
    for name, layer in cast(torch.nn.Module, model).named_modules():
        if isinstance(layer, torch.nn.Linear) and layer is not head and ".lora_" not in name:
            whole = torch.empty_like(layer.weight, dtype=torch.int8, requires_grad=False)
            layer.weight = torch.nn.Parameter(whole, requires_grad=False)
