"""Low-rank adapters (LoRA, arXiv:2106.09685) from peft: a policy whose base weights never change.

The base without its adapters is the reference policy, so a KL term needs no second model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from herl.errors import ConfigError
from herl.models.quantized import factor, in_loaded_shape, is_quantized


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Which layers get adapters, and how large.

    Args:
        rank: Rank of each layer's update.
        alpha: The update is scaled by alpha / rank.
        dropout: Share of the adapter's inputs that are dropped in training. Above 0, the trainer's
            log-probs differ randomly from the sampler's.
        target_modules: Names of layers; "all-linear" for every linear layer except the head; null for
            peft's default for the architecture.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | Sequence[str] | None = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"model.lora.rank: expected at least 1, got {self.rank}")

    def add_to(self, model: PreTrainedModel) -> None:
        """Adds fresh adapters, which do not change the output yet, and freezes all other weights.

        Adapters are at least float32 for any model: bfloat16 would round small updates away.

        Raises:
            ConfigError: peft is not installed, or finds no matching layers.
        """
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise ConfigError("model.lora needs peft: pip install peft") from error
        targets = self.target_modules
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft declares int but accepts any number
            lora_dropout=self.dropout,
            target_modules=targets if targets is None or isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )
        try:
            model.add_adapter(config)
        except ValueError as error:
            raise ConfigError(f"model.lora.target_modules: {error}") from error
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype != torch.float64:
                parameter.data = parameter.data.float()  # peft creates it in its layer's type
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if model.config.get_text_config().tie_word_embeddings and any(hasattr(e, "base_layer") for e in ends):
            raise ConfigError(
                "model.lora.target_modules: expected layers other than the embeddings and the head, which "
                "this model ties; with adapters they would no longer share one weight"
            )


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether the model has adapters."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


@contextlib.contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, the model computes as if it had no adapters. Only for passes without gradient.

    peft's own switch also freezes the adapters, and FSDP would remember that from its first pass.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def adapted_weights(model: torch.nn.Module) -> dict[int, torch.nn.Module]:
    """Returns the layers with adapters, keyed by the id() of the weight that they adapt."""
    from peft.tuners.lora import LoraLayer

    return {id(_base_weight(layer)): layer for layer in model.modules() if isinstance(layer, LoraLayer)}


def merged(layer: torch.nn.Module) -> torch.Tensor:
    """Returns a layer's weight plus its adapters' updates, as a new tensor: [out, in], or stacked experts."""
    adapted: Any = layer  # a peft LoraLayer
    weight = _base_weight(adapted).detach()
    packed = is_quantized(weight)
    if packed:
        weight = factor(adapted.base_layer)
    for adapter in adapted.active_adapters:
        weight = weight + adapted.get_delta_weight(adapter).detach()
    return in_loaded_shape(adapted.base_layer, weight) if packed else weight


def _base_weight(layer: Any) -> torch.Tensor:
    # Stacked experts are adapted as parameters, and each has a wrapper around their module.
    weight: torch.Tensor = layer.get_param() if hasattr(layer, "get_param") else layer.base_layer.weight
    return weight
