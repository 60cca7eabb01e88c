"""Loads policy and reference from a Hugging Face folder or name, or from a model that ships with herl."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from herl.errors import ConfigError
from herl.models import quantized, shared_attention
from herl.models.body import body
from herl.models.chat_template import set_template_variables
from herl.models.compiled import compile_blocks
from herl.models.lora import Lora
from herl.models.quantized import Quantization
from herl.models.source import SHIPPED as SHIPPED
from herl.models.source import model_source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedModel:
    """A causal language model with a chat template, before it is loaded.

    Args:
        path: A folder, the name of a model shipped with herl ("tiny") or converted by `herl fetch`
            ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"), or a name on the Hugging Face hub.
        dtype: Type of the policy's parameters. Only "float32" can be trained, since bfloat16 would round
            small updates away; trainer.precision=bf16-mixed computes in bfloat16 on float32 parameters. Under
            float32 adapters, "bfloat16" halves the memory of the frozen weights. On a CPU without AVX512 or
            AMX, bfloat16 is ten times slower.
        gradient_checkpointing: Recompute activations in backward: less memory, a third more time.
        compile: Compile each block of layers for the update; None for on a GPU only. The first steps take
            up to a minute longer. Sampling from the live policy is not affected.
        lora: Train low-rank adapters instead of the weights. The reference is then the policy without them.
        quantization: Bits of the frozen weights under adapters, "4bit" or "8bit" (`herl.models.quantized`);
            None for weights of `dtype`. Not with FSDP. Needs bitsandbytes.
        seed: Seed of fresh adapters.
        chat_template_kwargs: Variables of the chat template in all prompts, such as {enable_thinking: false};
            None for the template's own defaults. An exported model keeps them.
    """

    path: str = "tiny"
    dtype: str = "float32"
    gradient_checkpointing: bool = False
    compile: bool | None = None
    lora: Lora | None = None
    quantization: Quantization | None = None
    seed: int = 0
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ConfigError(f"model.dtype: expected a torch dtype such as 'float32', got '{self.dtype}'")
        if self.quantization is not None:
            quantized.check_quantization(self.quantization, self.dtype)

    def check_trainable(self) -> None:
        """Checks that small updates can change the trained weights.

        Raises:
            ConfigError: all weights would be trained in less than float32, or in whole numbers.
        """
        if self.lora is None and self.quantization is not None:
            raise ConfigError(
                f"model.quantization: expected null to train all weights, got '{self.quantization}', where "
                "small steps are rounded away; lora=lora trains float32 adapters on top of them"
            )
        if self.lora is None and self.dtype not in ("float32", "float64"):
            raise ConfigError(
                f"model.dtype: expected 'float32' to train all weights, got '{self.dtype}', which rounds "
                "updates as small as optimizer.lr away. trainer.precision=bf16-mixed computes in bfloat16 on "
                "float32 weights, and lora=lora trains float32 adapters on a bfloat16 model"
            )

    def lasting(self) -> dict[str, str | float]:
        """Returns the settings, by key, without which the weights in a checkpoint are another policy.

        The scale of adapters is no weight, and a checkpoint of adapters on quantized weights does not hold
        those; the model's place may change, but not its name."""
        settings: dict[str, str | float] = {"model.quantization": self.quantization or "null"}
        if self.quantization is not None:
            settings["model.path"] = Path(self.path).name
        if self.lora is not None:
            settings |= {"model.lora.rank": self.lora.rank, "model.lora.alpha": float(self.lora.alpha)}
        return settings

    def load(self, device: torch.device | str = "cpu") -> PreTrainedModel:
        """Loads the model's weights.

        Args:
            device: Where to quantize weights, and leave the model. Others are loaded into host memory.

        Raises:
            ConfigError: there is no such model, or it is not one that can be trained on text.
        """
        try:
            config = self._config()
            how = {} if self.quantization is None else quantized.loading_arguments(self.quantization, device)
            model: PreTrainedModel = auto_class(config).from_pretrained(
                self.source(), dtype=getattr(torch, self.dtype), **how
            )
        except (ImportError, OSError, ValueError) as error:
            raise ConfigError(f"model.path: cannot load '{self.path}': {error}") from error
        make_savable(model)
        if self.quantization is not None:
            quantized.prepare(model)
        return self._prepared(model)

    def max_tokens(self) -> int | None:
        """Returns the model's limit on the tokens of a prompt plus its answer; None if it states none.

        With rotary embeddings of the type longrope or dynamic, it is what `fixed_positions` returns.

        Raises:
            ConfigError: there is no such model.
        """
        config = self._text_config()
        limit: int | None = getattr(config, "max_position_embeddings", None)
        if (fixed := fixed_positions(config)) is not None:
            if limit is not None and fixed < limit:
                logger.warning(
                    "%s: a prompt with its answer is limited to %d of the model's %d tokens; beyond, the "
                    "positions of an answer would depend on others in its batch",
                    self.path,
                    fixed,
                    limit,
                )
            return fixed
        rope = getattr(config, "rope_parameters", None) or {}
        if limit is not None and rope.get("rope_type") in ("linear", "yarn"):
            limit = max(limit, int(rope.get("original_max_position_embeddings", limit) * rope["factor"]))
        return limit

    def vocab_size(self) -> int:
        """Returns the number of tokens that the model has an embedding for.

        Raises:
            ConfigError: there is no such model.
        """
        return int(self._text_config().vocab_size)

    def parameters(self) -> int:
        """Returns the number of the model's parameters, without adapters and without loading any.

        Raises:
            ConfigError: there is no such model.
        """
        config = self._config()
        with torch.device("meta"):
            return untrained(config).num_parameters()

    def outline(self) -> PreTrainedModel:
        """Returns the model with its adapters, but without memory for any weight (on the meta device).

        Raises:
            ConfigError: there is no such model, or it is not one that can be trained on text.
        """
        config = self._config()
        with torch.device("meta"):
            model = self._prepared(untrained(config, getattr(torch, self.dtype)))
            if self.quantization is not None:
                quantized.outline(model)
        return model

    def skeleton(self) -> PreTrainedModel:
        """Returns the model with uninitialized weights, to be filled from another process."""
        model = self.outline()
        model.to_empty(device="cpu")
        model.tie_weights()
        return model

    def _text_config(self) -> PreTrainedConfig:
        config: PreTrainedConfig = self._config().get_text_config()
        return config

    def _config(self) -> PreTrainedConfig:
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(self.source())
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.path: cannot load '{self.path}': {error}") from error
        quantized.check_not_quantized(config, self.path, self.quantization)
        return config

    def _prepared(self, model: PreTrainedModel) -> PreTrainedModel:
        remove_noise(model)  # not that of adapters, which the user has chosen
        if self.lora is not None:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                self.lora.add_to(model)
        choose_attention(model)
        freeze_other_media(model)
        body(model)  # raises an error before anything is sampled from a model that cannot be trained
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.compile:
            compile_blocks(blocks(model))
        if self.quantization is not None:
            quantized.keep_out_of_checkpoints(model)
        return model

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer.

        Raises:
            ConfigError: there is no such model, it has no chat template, or the template does not read a
                variable of `chat_template_kwargs`.
        """
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.source())
        except OSError as error:
            raise ConfigError(f"model.path: cannot load '{self.path}': {error}") from error
        if not tokenizer.chat_template:
            raise ConfigError(
                f"model.path: expected a chat model, got '{self.path}', which has no chat template"
            )
        if self.chat_template_kwargs:
            set_template_variables(tokenizer, self.chat_template_kwargs)
        return tokenizer

    def source(self) -> str:
        """Returns the folder or hub name that the model is loaded from.

        Raises:
            ConfigError: there is no such model.
        """
        return model_source(self.path)


def fixed_positions(config: PreTrainedConfig) -> int | None:
    """Returns how long sequences may be without changing the rotary embeddings; None if no length does.

    transformers chooses those of the types longrope (Phi-3, Phi-4-mini) and dynamic for a whole batch, by its
    longest sequence. Beyond the original context an answer would depend on others in its row, and on tokens
    that were drawn later.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [one for one in rope.values() if isinstance(one, Mapping)]
    limits = [one["original_max_position_embeddings"] for one in kinds if one.get("rope_type") == "longrope"]
    limits += [config.max_position_embeddings for one in kinds if one.get("rope_type") == "dynamic"]
    return min(limits, default=None)


def auto_class(config: PreTrainedConfig) -> type[Any]:
    """Returns the class that builds the model of a configuration: a language model, or else one that also
    reads images and is used for text alone (Mistral 3, Qwen3-VL).

    Raises:
        ConfigError: transformers has neither.
    """
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ConfigError(
        f"model.path: expected a causal language model, got model_type '{config.model_type}', for which "
        "transformers has none"
    )


def remove_noise(model: PreTrainedModel) -> None:
    """Switches off the dropout and jitter of an architecture (GPT-2, OPT, Mixtral): what is trained must be
    the model that was sampled, which has neither."""
    found = set()
    for module in cast(torch.nn.Module, model).modules():
        for name, share in vars(module).items():
            noise = name.endswith(("dropout", "jitter_noise")) or (
                name == "p" and "Dropout" in type(module).__name__
            )
            if noise and isinstance(share, float) and share > 0:
                setattr(module, name, 0.0)
                found.add(share)
    if found:
        logger.info(
            "%s is trained without the dropout of its configuration (%s)", type(model).__name__, sorted(found)
        )


def untrained(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Returns the model of a configuration with random weights; `dtype` None is the configuration's own."""
    own = {} if dtype is None else {"dtype": dtype}
    model: PreTrainedModel = auto_class(config).from_config(config, **own)
    return model


def make_savable(model: PreTrainedModel) -> None:
    """Makes a generation configuration consistent, since transformers refuses to save one that is not.

    One with a temperature but without do_sample (Vicuna, LLaVA) is for drawing answers. Of any other, only
    the token ids are kept.
    """
    found = model.generation_config
    fault = None if found is None else _fault(found)
    if found is None or fault is None:
        return
    found.do_sample = True
    kept = "it now has do_sample=true"
    if _fault(found) is not None:
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        ids = {name: value for name in names if (value := getattr(found, name)) is not None and value != -1}
        model.generation_config = GenerationConfig(**ids)
        kept = f"only its {', '.join(ids)} are kept"
    logger.info("generation_config.json contradicts itself (%s): %s", fault, kept)


def _fault(config: GenerationConfig) -> str | None:
    """Names the settings that cannot be saved together."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return ", ".join(re.findall(r"^- `(\w+)`", str(error), re.MULTILINE)) or str(error)
    return None


def freeze_other_media(model: PreTrainedModel) -> None:
    """Freezes what text does not pass through, such as an image encoder: it would get no gradient."""
    if model.config.get_text_config() is model.config:
        return
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    used = {parameter for part in parts if part is not None for parameter in part.parameters()}
    for parameter in model.parameters():
        if parameter not in used:
            parameter.requires_grad_(False)
    logger.info("%s is used for text alone; its other parts are frozen", type(model).__name__)


def choose_attention(model: PreTrainedModel) -> None:
    """Gives a model an attention implementation that is correct for its architecture.

    sdpa, the default of transformers, silently ignores the cap on attention scores (Gemma 2, VaultGemma).
    """
    cap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if cap is None:
        return shared_attention.install(model)
    logger.warning(
        "%s caps its attention scores at %g: it uses transformers' eager attention, since sdpa would ignore "
        "the cap. This takes more memory and time, and answers cannot share a context in a row",
        type(model).__name__,
        cap,
    )
    model.set_attn_implementation("eager")


def blocks(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Returns the blocks of layers that, according to transformers, must not be split.

    Raises:
        ConfigError: the architecture does not name its blocks.
    """
    names = set(model._no_split_modules or ())
    modules = cast(torch.nn.Module, model).modules()
    found = [module for module in modules if type(module).__name__ in names]
    if not found:
        raise ConfigError(
            "strategy=fsdp and model.compile (the default on a GPU): expected an architecture with "
            f"_no_split_modules, got {type(model).__name__}. model.compile=false trains it on one device"
        )
    return found
