"""Estimates the memory of a run on given GPUs: rough orders of magnitude from simple formulas.
`herl.dry_run.batch_cost` estimates the time.

of the update    (4 + 4 + 8) P / N for float32 weights, gradients and moments; 2 P for their bfloat16 copies,
                 on several GPUs those of what is gathered; (34 d + 8 f) L a token of a row for activations
                 (recomputed: 4 d L, and one layer's); 2 bytes a logit
of the sampling  (4 + 8) P / N; the engine's 2 P, 2 GiB, k for each token that it keeps

P parameters, L layers of width d with f inner units, k bytes of keys and values per token, N GPUs. Both kinds
of memory are needed at once unless the engine sleeps during the update.

The terms 34 d and 8 f: without compiled blocks, bf16-mixed keeps in each layer two float32 residuals and two
normalized ones (16 d), their bfloat16 casts for five products (10 d), queries, keys, values and outputs
(8 d), and in the gated part gate, activation, up and their product (8 f). Compiled blocks keep less.

Measured (`tests/unit/update/test_gpu_cost.py` checks the formulas against these points):
- Qwen2.5's shapes on an H100, forward and backward of rows of 10 950 tokens, no optimizer. Compiled blocks:
  0.5B 19.8 GiB, by the formulas 20.4; 1.5B 41.0 and 43.9; six layers of 7B 37.4 and 38.7. Blocks that are not
  compiled: 0.5B, 10 700 tokens, 22.9 and 24.2.
- 0.5B in one row of 21 800 tokens: 26.4, by the formulas 33.6. They ignore that the logits of so many answer
  tokens are computed in chunks, and overestimate the activations that such a row keeps.
Not measured: several GPUs, adapters, quantized weights, recomputed activations, the engine's share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from lightning.pytorch.strategies import Strategy
from transformers import AutoConfig, PreTrainedModel

from herl.errors import ConfigError
from herl.models.fsdp import FSDPStrategy
from herl.models.pretrained import PretrainedModel, untrained
from herl.models.quantized import elements
from herl.update.logprobs import WHOLE_LOGITS

WIDTH_BYTES = 34
"""Activation bytes per token and unit of a layer's width, in bf16-mixed."""
INNER_BYTES = 8
"""Activation bytes per token and unit of a layer's gated inner width."""
COMPILED_SHARE = 0.75
"""Share of these activations that compiled blocks keep."""
LOGIT_BYTES = 2
"""Bytes of a bfloat16 logit, which becomes its gradient in place."""
LOGITS_AT_ONCE = WHOLE_LOGITS["cuda"]
"""Most logits in memory on a GPU: if there are more, fewer are kept and all are computed twice."""
ENGINE_GIB = 2.0
"""Memory of an engine besides weights, keys and values: graphs and a step's activations. Not measured."""
RESERVE_GIB = 2.0
"""Memory of a GPU taken by CUDA, its libraries, and fragmentation."""
FLOAT32, BF16 = 4, 2
GIB = 2**30


Engine = Literal["vllm", "transformers", "elsewhere"]
"""The sampler: a vLLM engine on the same GPUs; the policy, with a bfloat16 copy that exists only while it
samples; or servers on other GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPU:
    """One GPU, according to its data sheet."""

    tflops: float
    """Dense bfloat16 operations, 10^12 per second."""
    gib: float
    bandwidth: float
    """Memory bandwidth, 10^12 bytes per second."""
    link: float
    """Bytes that reach it from the other GPUs of its node, 10^12 per second: NVLink or its like, or PCIe."""


GPUS = {
    "a100": GPU(tflops=312, gib=80, bandwidth=2.04, link=0.3),
    "h100": GPU(tflops=989, gib=80, bandwidth=3.35, link=0.45),
    "h200": GPU(tflops=989, gib=141, bandwidth=4.8, link=0.45),
    "b200": GPU(tflops=2250, gib=180, bandwidth=8.0, link=0.9),
    "l40s": GPU(tflops=362, gib=48, bandwidth=0.864, link=0.032),
    "mi300x": GPU(tflops=1307, gib=192, bandwidth=5.3, link=0.448),
    "rtx4090": GPU(tflops=165, gib=24, bandwidth=1.01, link=0.032),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """The sizes of a model that the formulas need."""

    parameters: int
    layers: int
    width: int
    inner: int
    """Units of a layer's gated part; in a mixture of experts, those of the experts that see a token."""
    vocabulary: int
    outer: int
    """Parameters outside the layers: embeddings and head."""
    kv_bytes: int
    """Bytes of one token's keys and values in all layers, in bfloat16."""

    @property
    def layer(self) -> float:
        """Parameters of one layer."""
        return (self.parameters - self.outer) / self.layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Tokens of the answers to one prompt that are sampled together."""

    answers: tuple[int, ...]
    follow_ups: tuple[int, ...] = ()
    """Those that the same engine samples once all of these are finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of one batch, as measured in a trial."""

    rounds: tuple[tuple[Asked, ...], ...]
    """Attempts and revisions. A round begins when all engines have finished the one before."""
    prompt_tokens: float
    """Tokens of all prompts that the engines read; n answers to a prompt read it once. Replies in episodes
    count too, also once: with a prefix cache, nothing before them is read again."""
    trained_tokens: float
    """Tokens of all rows of the update, contexts included."""
    micro_batch_tokens: float
    """Tokens of the longest micro-batch."""
    judge_seconds: float
    """Time that the run waited for the judge."""
    environment_seconds: float = 0.0
    """The same for the environment."""

    @property
    def asked(self) -> list[Asked]:
        """All rounds in one."""
        return [asked for one in self.rounds for asked in one]

    @property
    def answers(self) -> int:
        return sum(len(one.answers) + len(one.follow_ups) for one in self.asked)

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(sum(one.answers) + sum(one.follow_ups) for one in self.asked)

    @property
    def kept_tokens(self) -> float:
        """Mean tokens of an answer with its share of a prompt, whose keys and values an engine keeps."""
        return (self.answer_tokens + self.prompt_tokens) / max(1, self.answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a run that matter for the estimate."""

    updates_per_batch: int = 1
    reference: bool = False
    """Whether the loss needs the log-probs of a reference."""
    entropy_pass: bool = False
    """Whether the loss chooses tokens by their entropy, which takes a pass before each step."""
    second_model: bool = False
    """Whether the reference is a separate model."""
    trained_share: float = 1.0
    """Share of the parameters with gradients and moments: below 1 with adapters."""
    checkpointing: bool = False
    compiled: bool = False
    """Whether blocks of layers are compiled, the default on a GPU."""
    frozen_bytes: float = 4
    """Mean bytes of a weight that is not trained: 2 under adapters of a bfloat16 model."""
    quantized_share: float = 0.0
    """Share of the parameters in 4 or 8 bits; `frozen_bytes` counts them too."""
    shards: int | None = None
    """Devices that hold one copy of the weights, gradients and moments; None for all."""
    keeps_gathered: bool = False
    """Whether FSDP keeps a layer's gathered weights from forward to backward (ZeRO-2)."""
    whole_gradients: bool = False
    """Whether FSDP keeps the gradient of the whole model on each device until the end of a step."""
    batches_ahead: int = 0
    """Batches that are sampled during the update, which takes the memory of both."""
    engine: Engine = "vllm"
    sleep: bool = False
    """Whether the engine frees its memory for the update."""
    tensor_parallel: int = 1
    """GPUs per engine."""
    max_at_once: int = 256
    """Answers that one engine works on at the same time."""
    whole_groups: bool = False
    """Whether all answers to a prompt must come from one engine."""


def model_size(path: str) -> ModelSize:
    """Returns the size of a model from its configuration, without reading weights.

    Args:
        path: As in `PretrainedModel`; of a folder, only config.json is read.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(PretrainedModel(path=path).source())
    except (OSError, ValueError, ConfigError) as error:
        raise ConfigError(f"cost.model: cannot read the configuration of '{path}': {error}") from error
    with torch.device("meta"):
        return size_of(untrained(config))


def size_of(model: PreTrainedModel) -> ModelSize:
    """Returns the size of a model, on any device. Adapters count as parameters."""
    text = model.config.get_text_config()
    queries = getattr(text, "num_attention_heads", None) or 0  # a model may have no attention
    head = getattr(text, "head_dim", None) or (text.hidden_size // queries if queries else 0)
    heads = getattr(text, "num_key_value_heads", None) or queries
    embeddings = cast(torch.Tensor, model.get_input_embeddings().weight)
    output = cast(torch.Tensor, model.get_output_embeddings().weight)
    return ModelSize(
        parameters=sum(map(elements, model.parameters())),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        inner=_inner(text),
        vocabulary=text.vocab_size,
        outer=embeddings.numel() + (0 if output is embeddings else output.numel()),
        kv_bytes=2 * BF16 * text.num_hidden_layers * heads * head,
    )


def gpu_named(name: str) -> GPU:
    """Returns a known GPU by name.

    Raises:
        ConfigError: the name is unknown.
    """
    if name.lower() not in GPUS:
        raise ConfigError(f"cost.gpu: expected one of {', '.join(GPUS)}, got '{name}'")
    return GPUS[name.lower()]


def gpu_of(device: torch.device) -> GPU | None:
    """Returns the known GPU that matches a device's name; None for a CPU or an unknown GPU."""
    name = torch.cuda.get_device_name(device).lower() if device.type == "cuda" else ""
    return next((gpu for known, gpu in GPUS.items() if known in name.replace(" ", "")), None)


def batch_gib(
    model: ModelSize, work: Work, settings: Settings, gpu: GPU, devices: int
) -> tuple[dict[str, float], float]:
    """Returns the GiB of one GPU by use, with their "total"; and how many answers an engine has room for."""
    shards = min(devices, settings.shards or devices)
    update = update_gib(model, work.micro_batch_tokens, settings, shards)
    sampling = _sampling_gib(model, settings, shards)
    update_total = sum(update.values()) + RESERVE_GIB
    sampling_total = sum(sampling.values()) + RESERVE_GIB
    asleep = settings.sleep or settings.engine != "vllm"
    taken = sampling_total if asleep else update_total + sampling["engine"]
    of_answer = max(1.0, model.kv_bytes * work.kept_tokens / settings.tensor_parallel)
    slots = max(1.0, min(settings.max_at_once, (gpu.gib - taken) * GIB / of_answer))
    together = max((len(one.answers) for one in work.asked), default=1) if settings.whole_groups else 1
    at_once = min(slots, max(together, work.answers * settings.tensor_parallel / devices))
    cache = 0.0 if settings.engine == "elsewhere" else at_once * of_answer / GIB
    total = max(update_total, sampling_total + cache) if asleep else taken + cache
    memory = update | {"engine": sampling["engine"], "keys_and_values": cache, "reserve": RESERVE_GIB}
    return memory | {"total": total}, slots


def update_gib(
    model: ModelSize, row_tokens: float, settings: Settings, devices: int, *, moments: bool = True
) -> dict[str, float]:
    """Returns the GiB of one GPU during an update in bf16-mixed, by use, without CUDA's overhead.

    Args:
        model: The model to be trained.
        row_tokens: Tokens of the longest micro-batch.
        settings: The run's settings.
        devices: GPUs that share weights, gradients and moments.
        moments: Whether an optimizer with two moments has taken a step.
    """
    trained = settings.trained_share * model.parameters
    state = (2 * FLOAT32 + 2 * FLOAT32 * moments) * trained + _frozen(model, settings)
    parts = {
        "weights_gradients_moments": state / devices,
        "bfloat16_weights": bfloat16_weights(model, settings, devices),
        "activations": activation_bytes(model, settings) * row_tokens,
        "logits": LOGIT_BYTES * min(row_tokens * model.vocabulary, LOGITS_AT_ONCE),
    }
    return {name: size / GIB for name, size in parts.items()}


def activation_bytes(model: ModelSize, settings: Settings) -> float:
    """Returns the bytes that one token of a row keeps from forward to backward, without logits."""
    of_layer = float(WIDTH_BYTES * model.width + INNER_BYTES * model.inner)
    if settings.compiled:
        of_layer *= COMPILED_SHARE
    if settings.checkpointing:
        return of_layer + FLOAT32 * model.width * model.layers
    return of_layer * model.layers


def keeps_gathered(strategy: Strategy) -> bool:
    """Whether FSDP keeps gathered weights from forward to backward (ZeRO-2)."""
    return isinstance(strategy, FSDPStrategy) and not strategy.reshard_after_forward


def whole_gradients(strategy: Strategy) -> bool:
    """Whether FSDP holds whole gradients until the last row of a step."""
    return isinstance(strategy, FSDPStrategy) and strategy.reduce_gradients_once


def gathered_parameters(model: ModelSize, settings: Settings) -> float:
    """Returns the parameters of a sharded model that a device has gathered at once: those outside the layers,
    and one layer beside the next, or all of them."""
    return model.parameters if settings.keeps_gathered else model.outer + 2 * model.layer


def bfloat16_weights(model: ModelSize, settings: Settings, devices: int) -> float:
    """Returns the bytes of weights in the type of products. One GPU keeps each from forward to backward,
    but quantized ones only while they are used, which are dequantized to float32 first. Several hold one
    layer while they gather the next, with its gradients in bfloat16 and, for the sum, in float32."""
    if devices > 1:
        gathered = gathered_parameters(model, settings)
        gradients = settings.trained_share * (model.outer + model.layer)
        summed = settings.trained_share * model.parameters if settings.whole_gradients else gradients
        return BF16 * (gathered + gradients) + FLOAT32 * summed
    kept = BF16 * (1 - settings.quantized_share) * model.parameters
    if settings.checkpointing:
        kept = BF16 * (model.outer + model.layer)
    return kept + (FLOAT32 + BF16) * model.layer * (settings.quantized_share > 0)


def _sampling_gib(model: ModelSize, settings: Settings, shards: int) -> dict[str, float]:
    """Returns the GiB of one GPU during sampling, without keys and values. There are no gradients then."""
    state = (FLOAT32 + 2 * FLOAT32) * settings.trained_share * model.parameters + _frozen(model, settings)
    engine = {
        "vllm": BF16 * model.parameters / settings.tensor_parallel + ENGINE_GIB * GIB,
        # a whole copy on each GPU, even if the policy is sharded
        "transformers": BF16 * model.parameters * (1 - settings.quantized_share),
        "elsewhere": 0.0,
    }
    return {"state": state / shards / GIB, "engine": engine[settings.engine] / GIB}


def _frozen(model: ModelSize, settings: Settings) -> float:
    """Returns the bytes of weights that are not trained, including those of a second model."""
    return settings.frozen_bytes * model.parameters * (1 - settings.trained_share + settings.second_model)


def _inner(text: Any) -> int:
    """Returns the inner units of a layer that see one token; 4 x width if the configuration does not say."""
    experts: int = getattr(text, "num_experts_per_tok", None) or 1
    units: int | None = getattr(text, "moe_intermediate_size", None) or getattr(
        text, "intermediate_size", None
    )
    if isinstance(units, list | tuple):  # of each layer
        units = max(units)
    return experts * units if units else 4 * text.hidden_size
