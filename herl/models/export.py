"""Writes a policy as a Hugging Face folder: the whole model with adapters merged, or only the adapters."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from herl.distributed import rank, together
from herl.errors import ConfigError
from herl.files import whole_folder
from herl.models.checkpoint_file import check_checkpoint_file, check_settings, read_file, without_code
from herl.models.lora import has_adapters
from herl.models.pretrained import untrained
from herl.models.weights import misfit, named_weights, whole

PREFIX = "policy."
"""Prefix of the policy's weights in a checkpoint."""
FACTS = (
    "experiment", "algorithm", "seed", "heldout_reward_before", "heldout_reward_after", "heldout_reward_best",
    "prompts", "answers_sampled", "revisions_sampled", "tokens_sampled", "optimizer_steps", "judge.calls",
    "judge.tokens", "judge.cost", "processes", "seconds.total", "versions.torch", "versions.transformers",
)  # fmt: skip
"""Entries of a run's summary that the model card shows."""
SETTINGS = (
    "model.path", "data._target_", "data.train.path", "judge._target_", "judge.chat.model", "optimizer.lr",
    "rollout.attempts_per_prompt", "rollout.attempt.temperature", "rollout.attempt.max_new_tokens",
    "trainer.precision",
)  # fmt: skip
"""Settings of a run that the model card shows."""
CARD = """---
library_name: {library}
base_model: {base}
pipeline_tag: text-generation
tags: [herl, rubric-rewards, hindsight-experience]
---

# {title}

{text}

| fact | |
|---|---|
{rows}

```python
from transformers import pipeline

answer = pipeline("text-generation", "{place}")
print(answer([{{"role": "user", "content": "..."}}])[0]["generated_text"][-1]["content"])
```
"""
TRAINED = (
    "Trained with herl {version} by reinforcement learning from rubric rewards and hindsight experience\n"
    "(arXiv:2603.20046). The license is that of {base}."
)
UNTRAINED = "Written by herl {version} without training. The license is that of {base}."


def load_checkpoint(policy: PreTrainedModel, path: str | Path, settings: Mapping[str, str | float]) -> None:
    """Loads a checkpoint's policy into an unsharded model, in one process.

    Args:
        policy: The model.
        path: A file, or the folder of a sharded checkpoint. A reference in it is left out.
        settings: The model's settings, by key (`herl.models.pretrained.PretrainedModel.lasting`).

    Raises:
        ConfigError: there is no such checkpoint, or it belongs to another model or other settings.
    """
    path = Path(path)
    check_checkpoint_file("checkpoint", path)
    check_settings("checkpoint", path, settings)
    own = policy.state_dict()
    weights = _read_sharded(path, own) if path.is_dir() else read_file("checkpoint", path)
    found = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    if wrong := misfit(own, found):
        raise ConfigError(
            f"checkpoint: expected the weights of this model, got '{path}', {wrong}. Repeat the overrides of "
            "its run, or pass run="
        )
    policy.load_state_dict(found, strict=False)


def _read_sharded(path: Path, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Reads only the policy's weights, not the optimizer's moments."""
    with without_code(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed.*")
        stored = FileSystemReader(path).read_metadata().state_dict_metadata
        weights = {
            PREFIX + name: torch.empty_like(tensor, device="cpu")
            for name, tensor in own.items()
            if f"state_dict.{PREFIX}{name}" in stored
        }
        load_sharded({"state_dict": weights}, storage_reader=FileSystemReader(path), no_dist=True)
    return weights


def save_pretrained(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    adapter: bool = False,
) -> None:
    """Writes a folder that transformers, peft and vLLM can load. All ranks must call it; rank 0 writes.

    Args:
        policy: The model, sharded or not, with or without adapters.
        tokenizer: Its tokenizer, chat template included.
        folder: The target, created if needed.
        adapter: Write only the adapters, in peft's format, to be loaded on top of the base model.

    Raises:
        ConfigError: `adapter` is set, but the policy has no adapters.
        HerlError: a file cannot be written; names the folder and the free space.
    """
    if adapter and not has_adapters(policy):
        raise ConfigError("adapter: expected a policy with adapters (lora=lora), got one without")
    stream = named_weights(policy, checkpoint=False)  # save_pretrained converts them
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
        target = untrained(policy.config, policy.dtype)
        target.generation_config = policy.generation_config
        if hasattr(policy, "_weight_conversions"):  # those of its original checkpoint
            target._weight_conversions = policy._weight_conversions
        target.load_state_dict(weights, strict=False)  # tied weights have one name
        weights = target.state_dict()
    with whole_folder(Path(folder), last=("config.json", "adapter_config.json")) as part:
        target.save_pretrained(part, state_dict=weights)
        tokenizer.save_pretrained(part)


def model_card(
    base: str, checkpoint: str | None, *, adapter: bool = False, repository: str | None = None
) -> str:
    """Returns a model card with facts about the run that wrote a checkpoint.

    Args:
        base: Path or name of the model that training started from.
        checkpoint: A checkpoint in its run's folder, whose `summary.json` holds the facts; None for the base.
        adapter: Whether only the adapters are exported.
        repository: The model's place on the Hugging Face Hub, owner/name, if it has one.
    """
    name = Path(base).name if Path(base).is_dir() else base
    rows = []
    if checkpoint is not None:
        path = Path(checkpoint).absolute()
        rows = [f"| {key.replace('_', ' ')} | {value} |" for key, value in _facts(path.parents[1])]
        rows.append(f"| checkpoint | {path.name} |")
    return CARD.format(
        library="peft" if adapter else "transformers",
        base=name,
        place=repository or "path/to/this/folder",
        title=f"{name}, trained with herl" if checkpoint else name,
        text=(TRAINED if checkpoint else UNTRAINED).format(base=name, version=version("herl")),
        rows="\n".join(rows),
    )


def _facts(run: Path) -> list[tuple[str, Any]]:
    """Returns facts from a run's folder, by name; none if it has no summary.

    Interpolations are not resolved: ${oc.env:NAME} may name a secret, and a model may write such text, too.
    """
    facts: dict[str, Any] = {}
    if (run / "summary.json").is_file():
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        facts |= {key: _at(summary, key) for key in FACTS}
    if (run / "config.yaml").is_file():
        config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=False)
        facts |= {key: _at(config, key) for key in SETTINGS}
    known = ((key.replace("._target_", ""), value) for key, value in facts.items())
    return [(name, _shown(value)) for name, value in known if value is not None]


def _at(node: Any, key: str) -> Any:
    """Returns the value under a dotted key, or None."""
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _shown(value: Any) -> Any:
    """Shortens an absolute path to its name: the rest means nothing on another machine."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
