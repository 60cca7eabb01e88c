"""What a run would take on given GPUs, from formulas that anybody can check: no measurement, but an order.

update   (6 P T + 6 L d T S) / (N F u), a third more for recomputed activations and for a reference's pass,
         and for old log-probs, where a batch makes several steps
sample   a token for R answers takes E + max((2 P + R k S) / (B b), 2 P R / (F u)); a prompt token 2 P / (F u)
refresh  2 P / W
memory   (4 + 4 + 8) P / N for float32 weights, gradients and moments; activations of a micro-batch; engine

P parameters, L layers of width d, T trained tokens with their contexts, S mean tokens of a sequence, k bytes
of keys and values a token, N GPUs; of one: F bfloat16 FLOP/s, B bytes/s, R answers at once; u, b, E, W below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from herl.errors import ConfigError
from herl.model import PretrainedModel

FLOPS_SHARE = 0.4
"""u: share of the peak that large matrix products of a transformer reach."""
BANDWIDTH_SHARE = 0.7
"""b: share of the memory's bandwidth that decoding reaches."""
ENGINE_SECONDS = 0.005
"""E: of an engine's step besides the work of the GPU."""
REFRESH_BYTES = 20e9
"""W: bytes of weights that reach an engine in a second."""
ACTIVATION_BYTES = 34
"""Of a token and a unit of width in one layer, attention matrix left out (arXiv:2205.05198, equation 1)."""
BF16 = 2
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class GPU:
    """One GPU, by its maker's data sheet."""

    tflops: float
    """Dense bfloat16, 10^12 a second."""
    gib: float
    bandwidth: float
    """Of its memory, 10^12 bytes a second."""


GPUS = {
    "a100": GPU(tflops=312, gib=80, bandwidth=2.04),
    "h100": GPU(tflops=989, gib=80, bandwidth=3.35),
    "h200": GPU(tflops=989, gib=141, bandwidth=4.8),
    "b200": GPU(tflops=2250, gib=180, bandwidth=8.0),
    "l40s": GPU(tflops=362, gib=48, bandwidth=0.864),
    "mi300x": GPU(tflops=1307, gib=192, bandwidth=5.3),
    "rtx4090": GPU(tflops=165, gib=24, bandwidth=1.01),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What the formulas need of a model."""

    parameters: int
    layers: int
    width: int
    kv_bytes: int
    """Of the keys and values of one token in all layers, in bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One batch, as it was measured in a trial."""

    answers: float
    """Attempts and revisions."""
    answer_tokens: float
    """Mean tokens of an answer."""
    prompt_tokens: float
    """Of all prompts that the engines read; n answers of a prompt read it once."""
    trained_tokens: float
    """Of all rows of the update, contexts included."""
    micro_batch_tokens: float
    """Of the longest micro-batch."""
    judge_seconds: float
    """That the judge kept the run waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What of the configuration matters."""

    updates_per_batch: int = 1
    reference: bool = False
    """Whether the loss needs the log-probs of a reference."""
    second_model: bool = False
    """Whether that reference is a model of its own."""
    trained_share: float = 1.0
    """Share of the parameters that has gradients and moments: below 1 with adapters."""
    checkpointing: bool = False
    tensor_parallel: int = 1
    """GPUs of one engine."""
    most_at_once: int = 256
    """Answers that one engine works on."""


def model_size(path: str) -> ModelSize:
    """Returns the size of a model from its configuration alone; no weights are read.

    Args:
        path: As in `PretrainedModel`; of a folder only config.json is read.

    Raises:
        ConfigError: there is none.
    """
    try:
        config = AutoConfig.from_pretrained(PretrainedModel(path=path).source())
    except (OSError, ValueError, ConfigError) as error:
        raise ConfigError(f"cost.model: cannot read the configuration of '{path}': {error}") from error
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        kv_bytes=2 * BF16 * text.num_hidden_layers * heads * head,
    )


def gpu_named(name: str) -> GPU:
    """Returns a GPU that is known.

    Raises:
        ConfigError: it is not.
    """
    if name.lower() not in GPUS:
        raise ConfigError(f"cost.gpu: expected one of {', '.join(GPUS)}, got '{name}'")
    return GPUS[name.lower()]


def estimate(model: ModelSize, work: Work, settings: Settings, gpu: GPU, devices: int) -> dict[str, Any]:
    """Returns seconds of a batch by phase and GiB of one GPU by use.

    Raises:
        ConfigError: the engines do not fit the number of GPUs.
    """
    if devices < 1 or devices % settings.tensor_parallel:
        raise ConfigError(
            f"cost.devices: expected a multiple of the {settings.tensor_parallel} GPUs of an engine, "
            f"got {devices}"
        )
    memory = _memory(model, work, settings, devices)
    used = sum(memory.values())
    kept = work.answer_tokens + work.prompt_tokens / max(1.0, work.answers)
    room = (gpu.gib - used) * GIB * settings.tensor_parallel / (model.kv_bytes * kept)
    at_once = max(1.0, min(settings.most_at_once, room, work.answers * settings.tensor_parallel / devices))
    memory["keys_and_values"] = at_once * kept * model.kv_bytes / settings.tensor_parallel / GIB
    used = sum(memory.values())
    return {
        "seconds": {
            "refresh": BF16 * model.parameters / REFRESH_BYTES,
            "sample": _sampling(model, work, settings, gpu, devices, at_once),
            "judge": work.judge_seconds,
            "update": _update(model, work, settings, gpu, devices),
        },
        "gib": memory | {"total": used, "of": gpu.gib},
        "fits": used <= gpu.gib,
    }


def _update(model: ModelSize, work: Work, settings: Settings, gpu: GPU, devices: int) -> float:
    length = work.trained_tokens / max(1.0, work.answers)
    forward = 2 * (model.parameters + model.layers * model.width * length) * work.trained_tokens
    passes = 3.0 + settings.checkpointing + settings.reference
    passes += 1 - 1 / settings.updates_per_batch  # old log-probs: the first step's are the present ones
    return passes * forward / (devices * gpu.tflops * 1e12 * FLOPS_SHARE)


def _sampling(
    model: ModelSize, work: Work, settings: Settings, gpu: GPU, devices: int, at_once: float
) -> float:
    engines, width = devices / settings.tensor_parallel, settings.tensor_parallel
    flops, bandwidth = width * gpu.tflops * 1e12 * FLOPS_SHARE, width * gpu.bandwidth * 1e12 * BANDWIDTH_SHARE
    kept = work.answer_tokens + work.prompt_tokens / max(1.0, work.answers)
    read = (BF16 * model.parameters + at_once * model.kv_bytes * kept) / bandwidth
    computed = 2 * model.parameters * at_once / flops
    waves = max(1.0, work.answers / (engines * at_once))
    prefill = 2 * model.parameters * work.prompt_tokens / (engines * flops)
    return prefill + waves * work.answer_tokens * (ENGINE_SECONDS + max(read, computed))


def _memory(model: ModelSize, work: Work, settings: Settings, devices: int) -> dict[str, float]:
    frozen = 4 * model.parameters * (1 - settings.trained_share + settings.second_model)
    trained = 16 * model.parameters * settings.trained_share
    layers = 1.0 if settings.checkpointing else float(model.layers)
    activations = layers * ACTIVATION_BYTES + BF16 * model.layers * settings.checkpointing
    parts = {
        "weights_gradients_moments": (trained + frozen) / devices,
        "activations": activations * model.width * work.micro_batch_tokens,
        "engine_weights": BF16 * model.parameters / settings.tensor_parallel,
    }
    return {name: size / GIB for name, size in parts.items()}
