"""Writes a policy as a Hugging Face folder: whole with adapters merged, or the adapters alone."""

from __future__ import annotations

import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from herl.distributed import rank, together
from herl.errors import ConfigError
from herl.lora import has_adapters
from herl.weights import named_weights, whole

PREFIX = "policy."
"""Of the policy's weights in a checkpoint."""


def load_checkpoint(policy: PreTrainedModel, path: str | Path) -> None:
    """Puts a checkpoint's weights into a whole policy, on one process; a folder is a sharded checkpoint.

    Raises:
        ConfigError: there is no such checkpoint, or it is of another model.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"checkpoint: expected a checkpoint written by herl fit, got '{path}'")
    own = policy.state_dict()
    if path.is_dir():
        weights = {PREFIX + name: torch.empty_like(tensor, device="cpu") for name, tensor in own.items()}
        missing = set(weights) - {
            name.removeprefix("state_dict.")
            for name in FileSystemReader(path).read_metadata().state_dict_metadata
        }
        weights = {name: tensor for name, tensor in weights.items() if name not in missing}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.distributed.*")
            load_sharded({"state_dict": weights}, storage_reader=FileSystemReader(path), no_dist=True)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    found = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    tied = {
        name
        for name, tensor in own.items()
        if any(
            other in found and tensor.data_ptr() == own[other].data_ptr() for other in own if other != name
        )
    }
    absent, strange = set(own) - set(found) - tied, set(found) - set(own)
    if absent or strange:
        raise ConfigError(
            f"checkpoint: expected the weights of this model, got '{path}', in which "
            f"{sorted(absent)[:3]} are missing and {sorted(strange)[:3]} too many: add the overrides of its run"
        )
    try:
        policy.load_state_dict(found, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"checkpoint: expected the weights of this model, got '{path}': {error}") from error


def save_pretrained(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    adapter: bool = False,
) -> None:
    """Writes what transformers, peft and vLLM load. All ranks must call it; rank 0 writes.

    Args:
        policy: Whole or sharded, with or without adapters.
        tokenizer: Its tokenizer, chat template included.
        folder: Where to; made if it is not there.
        adapter: Write the adapters alone, in peft's format, to be loaded on top of the base model.

    Raises:
        ConfigError: the adapters of a policy without any are asked for.
    """
    if adapter and not has_adapters(policy):
        raise ConfigError("adapter: expected a policy with adapters (lora=lora), got one without")
    stream = named_weights(policy)
    if adapter:
        own = ((name, p) for name, p in policy.named_parameters() if ".lora_" in name)
        stream = ((name, whole(parameter.detach())) for name, parameter in own)
    weights = {name: tensor.cpu() for name, tensor in stream}
    together(lambda: _write(policy, tokenizer, folder, weights, adapter))


def _write(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    weights: dict[str, torch.Tensor],
    adapter: bool,
) -> None:
    if rank() > 0:
        return
    target = policy
    if not adapter:
        target = AutoModelForCausalLM.from_config(policy.config, dtype=policy.dtype)
        target.generation_config = policy.generation_config
        target.load_state_dict(weights, strict=False)  # tied weights come under one name
        weights = target.state_dict()
    target.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def model_card(base: str, checkpoint: str | None, *, adapter: bool = False) -> str:
    """Returns a model card with the facts of the run that made a checkpoint.

    Args:
        base: Path or name of the model that training began with.
        checkpoint: In the folder of its run, where `summary.json` tells more; None for the base itself.
        adapter: Whether these are adapters alone.
    """
    name = Path(base).name if Path(base).is_dir() else base
    run = Path(checkpoint).parents[1] if checkpoint else None
    facts: dict[str, Any] = {}
    if run is not None and (run / "summary.json").is_file():
        facts = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    kept = (
        "experiment", "algorithm", "seed", "heldout_reward_before", "heldout_reward_after",
        "heldout_reward_best", "prompts", "answers_sampled", "revisions_sampled", "tokens_sampled",
        "optimizer_steps",
    )  # fmt: skip
    rows = [f"| {key.replace('_', ' ')} | {facts[key]} |" for key in kept if facts.get(key) is not None]
    rows += [f"| checkpoint | {Path(checkpoint).name} |"] if checkpoint else []
    lines = [
        "---", f"library_name: {'peft' if adapter else 'transformers'}", f"base_model: {name}",
        "pipeline_tag: text-generation", "tags: [herl, rubric-rewards, hindsight-experience]", "---", "",
        f"# {name}, trained with herl", "",
        "Trained by reinforcement learning on rubric rewards and hindsight experience (arXiv:2603.20046) with "
        f"herl {version('herl')}.", "", "| fact | |", "|---|---|", *rows, "",
    ]  # fmt: skip
    return "\n".join(lines)
