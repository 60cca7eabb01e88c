"""Writes a policy as a Hugging Face folder: whole with adapters merged, or the adapters alone."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from herl.distributed import rank, together
from herl.errors import ConfigError
from herl.models.lora import has_adapters
from herl.models.weights import named_weights, whole

PREFIX = "policy."
"""Of the policy's weights in a checkpoint."""
FACTS = (
    "experiment", "algorithm", "seed", "heldout_reward_before", "heldout_reward_after", "heldout_reward_best",
    "prompts", "answers_sampled", "revisions_sampled", "tokens_sampled", "optimizer_steps", "judge.calls",
    "judge.tokens", "judge.cost", "processes", "seconds.total", "versions.torch", "versions.transformers",
)  # fmt: skip
"""Of a run's summary, on the model card."""
SETTINGS = (
    "model.path", "data._target_", "data.train.path", "judge._target_", "judge.chat.model", "optimizer.lr",
    "rollout.attempts_per_prompt", "rollout.attempt.temperature", "rollout.attempt.max_new_tokens",
    "trainer.precision",
)  # fmt: skip
"""Of a run's configuration, on the model card."""
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

answer = pipeline("text-generation", "path/to/this/folder")
print(answer([{{"role": "user", "content": "..."}}])[0]["generated_text"][-1]["content"])
```
"""
TRAINED = (
    "Trained with herl {version} by reinforcement learning from rubric rewards and hindsight experience\n"
    "(arXiv:2603.20046). The licence is that of {base}."
)
AS_IT_WAS = "Written by herl {version} as it was: not trained. The licence is that of {base}."


def load_checkpoint(policy: PreTrainedModel, path: str | Path) -> None:
    """Puts a checkpoint's weights into a whole policy, on one process; a folder is a sharded checkpoint.

    Raises:
        ConfigError: there is no such checkpoint, or it is of another model.
    """
    path = Path(path)
    check_checkpoint_file("checkpoint", path)
    own = policy.state_dict()
    weights = _read_sharded(path, own) if path.is_dir() else _read_file("checkpoint", path)
    found = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    there = {tensor.data_ptr() for name, tensor in own.items() if name in found}
    absent = [name for name, tensor in own.items() if tensor.data_ptr() not in there]  # tied ones come once
    strange = [name for name in found if name not in own]
    if absent or strange:
        raise ConfigError(
            f"checkpoint: expected the weights of this model, got '{path}': {absent[:3]} are missing "
            f"and {strange[:3]} are too many: add the overrides of its run, or give run="
        )
    try:
        policy.load_state_dict(found, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"checkpoint: expected the weights of this model, got '{path}': {error}") from error


def check_checkpoint_file(key: str, path: Path) -> None:
    """Checks that a path is a checkpoint, a file or the folder of a sharded one; no weights are read.

    Raises:
        ConfigError: it is not; the message begins with the key.
    """
    if path.is_file():
        _read_file(key, path)
    elif not (path / ".metadata").is_file():
        raise ConfigError(f"{key}: expected a checkpoint written by herl fit, got '{path}'")


def _read_file(key: str, path: Path) -> dict[str, torch.Tensor]:
    """Returns the weights in a checkpoint; they are read when they are used. Nothing in it is executed."""
    expected = f"{key}: expected a checkpoint written by herl fit, got '{path}'"
    if not zipfile.is_zipfile(path):
        raise ConfigError(expected)
    try:
        weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)[
            "state_dict"
        ]
    except (UnpicklingError, RuntimeError, LookupError, TypeError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{expected} ({type(error).__name__}: {said})") from error
    return weights


def _read_sharded(path: Path, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Reads the policy's weights alone, without the optimiser's moments."""
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    weights = {
        PREFIX + name: torch.empty_like(tensor, device="cpu")
        for name, tensor in own.items()
        if f"state_dict.{PREFIX}{name}" in stored
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed.*")
        load_sharded({"state_dict": weights}, storage_reader=FileSystemReader(path), no_dist=True)
    return weights


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
        target = AutoModelForCausalLM.from_config(policy.config, dtype=policy.dtype)
        target.generation_config = policy.generation_config
        if hasattr(policy, "_weight_conversions"):  # those that its own checkpoint needed
            target._weight_conversions = policy._weight_conversions
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
    rows = []
    if checkpoint is not None:
        path = Path(checkpoint).absolute()
        rows = [f"| {key.replace('_', ' ')} | {value} |" for key, value in _facts(path.parents[1])]
        rows.append(f"| checkpoint | {path.name} |")
    return CARD.format(
        library="peft" if adapter else "transformers",
        base=name,
        title=f"{name}, trained with herl" if checkpoint else name,
        text=(TRAINED if checkpoint else AS_IT_WAS).format(base=name, version=version("herl")),
        rows="\n".join(rows),
    )


def _facts(run: Path) -> list[tuple[str, Any]]:
    """What a run's folder tells of it, by name; nothing where it has no summary.

    Texts stay as they are written: ${oc.env:NAME} may stand for a secret, and a model may write such things.
    """
    told: dict[str, Any] = {}
    if (run / "summary.json").is_file():
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        told |= {key: _at(summary, key) for key in FACTS}
    if (run / "config.yaml").is_file():
        config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=False)
        told |= {key: _at(config, key) for key in SETTINGS}
    known = ((key.replace("._target_", ""), value) for key, value in told.items())
    return [(name, _shown(value)) for name, value in known if value is not None]


def _at(node: Any, key: str) -> Any:
    """What stands under a dotted key; None where nothing does."""
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _shown(value: Any) -> Any:
    """A path of this machine means nothing elsewhere: its name is enough."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
