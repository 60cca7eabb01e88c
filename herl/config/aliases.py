"""What people type for herl's settings: names from other programs, short ones, and keys at another place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from herl.config import conf_dir
from herl.errors import ConfigError

CLIP = ("loss.clip_low", "loss.clip_high")
ALIASES: dict[str, str | tuple[str, str]] = {
    "actor.optim.lr": "optimizer.lr",
    "batch_size": "data.prompts_per_batch",
    "beta": "loss.kl_coef",
    "clip": CLIP,
    "clip_ratio": CLIP,
    "clip_ratio_high": "loss.clip_high",
    "clip_ratio_low": "loss.clip_low",
    "cliprange": CLIP,
    "data.max_prompt_length": "rollout.max_prompt_tokens",
    "data.max_response_length": "rollout.attempt.max_new_tokens",
    "data.path": "data.train.path",
    "data.test.path": "data.heldout.path",
    "data.train_batch_size": "data.prompts_per_batch",
    "data.train_path": "data.train.path",
    "data.val.path": "data.heldout.path",
    "entropy_coef": "loss.entropy_coef",
    "epochs": "trainer.max_epochs",
    "epsilon": CLIP,
    "epsilon_high": "loss.clip_high",
    "gpus": "trainer.devices",
    "grad_clip": "module.max_grad_norm",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "group_size": "rollout.attempts_per_prompt",
    "judge.api_key_env": "judge.chat.api_key_env",
    "judge.base_url": "judge.chat.base_url",
    "judge.model": "judge.chat.model",
    "kl_coef": "loss.kl_coef",
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "lr_scheduler_type": "module.schedule",
    "max_completion_length": "rollout.attempt.max_new_tokens",
    "max_epochs": "trainer.max_epochs",
    "max_grad_norm": "module.max_grad_norm",
    "max_new_tokens": "rollout.attempt.max_new_tokens",
    "max_prompt_length": "rollout.max_prompt_tokens",
    "max_steps": "trainer.max_steps",
    "min_p": "rollout.attempt.min_p",
    "model_name_or_path": "model.path",
    "n": "rollout.attempts_per_prompt",
    "num_epochs": "trainer.max_epochs",
    "num_generations": "rollout.attempts_per_prompt",
    "num_train_epochs": "trainer.max_epochs",
    "optimizer.learning_rate": "optimizer.lr",
    "precision": "trainer.precision",
    "ref_model_mixup_alpha": "loss.ref_sync_rate",
    "ref_model_sync_steps": "loss.ref_sync_steps",
    "repetition_penalty": "rollout.attempt.repetition_penalty",
    "rollout.n": "rollout.attempts_per_prompt",
    "rollout.temperature": "rollout.attempt.temperature",
    "rollout.top_p": "rollout.attempt.top_p",
    "temperature": "rollout.attempt.temperature",
    "top_entropy_quantile": "loss.top_entropy_share",
    "top_k": "rollout.attempt.top_k",
    "top_p": "rollout.attempt.top_p",
    "train_batch_size": "data.prompts_per_batch",
    "trainer.epochs": "trainer.max_epochs",
    "trainer.gpus": "trainer.devices",
    "trainer.total_epochs": "trainer.max_epochs",
    "val_check_interval": "validation.val_check_interval",
    "warmup_steps": "module.warmup_steps",
    "weight_decay": "optimizer.weight_decay",
}
"""Keys by what people type for them, in the same unit; a clip range without a side is both sides."""

ADAPTERS = {
    "lora.alpha": "model.lora.alpha",
    "lora.dropout": "model.lora.dropout",
    "lora.r": "model.lora.rank",
    "lora.rank": "model.lora.rank",
    "lora.target_modules": "model.lora.target_modules",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lora_r": "model.lora.rank",
    "lora_rank": "model.lora.rank",
}
"""Keys of adapters, which also choose lora=lora unless another lora= is typed."""

CHOICES = {
    "bf16": {"true": "trainer.precision=bf16-mixed", "false": "trainer.precision=32-true"},
    "fsdp": {"true": "strategy=fsdp", "false": "strategy=auto"},
    "load_in_4bit": {"true": "model.quantization=4bit", "false": "model.quantization=null"},
    "load_in_8bit": {"true": "model.quantization=8bit", "false": "model.quantization=null"},
    "lora": {"true": "lora=lora", "false": "lora=none"},
    "use_peft": {"true": "lora=lora", "false": "lora=none"},
    "use_vllm": {"true": "sampler=vllm", "false": "sampler=transformers"},
    "wandb": {"true": "logger=[tensorboard,wandb]", "false": "logger=[tensorboard]"},
}
"""Settings by key and value."""

FUNCTIONS = ("reward", "reward_funcs", "reward_function")
"""What people type for judge=function with its path."""

_BATCHES = "counts batches, each of which is module.updates_per_batch optimizer steps"
_UPDATES = "module.updates_per_batch, which counts the optimizer steps that share a batch of prompts"
OTHER_UNITS = {
    "eval_steps": f"it counts optimizer steps: set validation.val_check_interval, which {_BATCHES}",
    "generation_batch_size": "it counts answers: set data.prompts_per_batch, which counts prompts",
    "gradient_accumulation_steps": f"it counts forward passes: set {_UPDATES}",
    "hub_model_id": "a run uploads nothing: herl export run=... push=owner/name",
    "logging_steps": f"it counts optimizer steps: set trainer.log_every_n_steps, which {_BATCHES}",
    "num_iterations": f"it counts passes over a batch: set {_UPDATES}",
    "per_device_eval_batch_size": "it counts answers on a device: set sampler.batch_size, which counts "
    "answers that are written at once",
    "per_device_train_batch_size": "it counts answers on a device: set data.prompts_per_batch, which counts "
    "prompts of all devices, or module.micro_batch_tokens, which counts tokens of a forward pass",
    "ppo_epochs": f"it counts passes over a batch: set {_UPDATES}",
    "ppo_mini_batch_size": f"it counts prompts: set {_UPDATES}",
    "push_to_hub": "a run uploads nothing: herl export run=... push=owner/name",
    "save_steps": f"it counts optimizer steps: set callbacks.checkpoints.every_n_batches, which {_BATCHES}",
    "steps_per_generation": f"it counts forward passes: set {_UPDATES}",
    "sync_ref_model": "it is a switch: set loss.ref_sync_steps, the optimizer steps between two moves of the "
    "reference, and loss.ref_sync_rate",
    "warmup_ratio": "it is a share of the run: set module.warmup_steps, which counts optimizer steps",
}
"""Settings of other programs that have no key with the same meaning: why not, and which key to set."""

MEASURES = ("validate", "test", "improve")
"""Verbs that draw held-out answers only, so that a short name means the setting of these."""
OF_HELDOUT = {
    "rollout.attempts_per_prompt": "validation.attempts",
    "rollout.attempt.max_new_tokens": "validation.sampling.max_new_tokens",
    "rollout.attempt.min_p": "validation.sampling.min_p",
    "rollout.attempt.repetition_penalty": "validation.sampling.repetition_penalty",
    "rollout.attempt.temperature": "validation.sampling.temperature",
    "rollout.attempt.top_k": "validation.sampling.top_k",
    "rollout.attempt.top_p": "validation.sampling.top_p",
}
"""Keys of held-out answers, by those of training."""
IMPROVED = "module.validation_attempts"
"""What herl improve takes instead of validation.attempts, which a run may have set for its training."""
HAVE_KEY = {"data": ("file",), "judge": ("llm", "local")}
"""Choices whose keys the aliases in a group stand for; in other groups all that ship with herl."""
CHATS_WITH_PATH = ("local", "vllm")
"""Choices of judge/chat whose model is an object with a path."""

_ROWS = re.compile(r"(hf:\S+|lm_eval:\S+|.*\.(jsonl|json|csv|parquet))$")
_MODEL = re.compile(r"[\w.~-]*/\S+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """What else is typed, which decides what a name stands for.

    Args:
        verb: A verb of the command line.
        choices: The choice in each group that is typed, or that run= carries over.
        sweeps: Whether -m is given.
        own_experiment: Whether an experiment in the user's --config-dir may choose components of the user.
    """

    verb: str = "fit"
    choices: Mapping[str, str] = field(default_factory=dict)
    sweeps: bool = False
    own_experiment: bool = False

    def has_key(self, alias: str) -> bool:
        """Returns whether an alias such as judge.model means a component that ships with herl."""
        group, dot, _ = alias.partition(".")
        if not dot or group == "lora" or not (conf_dir() / group).is_dir():
            return True
        if (chosen := self.choices.get(group)) is None:
            return not self.own_experiment
        if group in HAVE_KEY:
            return chosen in HAVE_KEY[group] or (group == "data" and bool(_ROWS.match(chosen)))
        return (conf_dir() / group / f"{chosen}.yaml").is_file()

    def keys(self, alias: str) -> tuple[str, ...]:
        """Returns the keys that an alias stands for; none if it is no alias here."""
        if alias in ("output_dir", "hydra.run.dir") and self.sweeps:
            return ("hydra.sweep.dir",)
        if alias == "output_dir":
            return ("hydra.run.dir",)
        if alias == "validation.attempts" and self.verb == "improve":
            return (IMPROVED,)
        if alias in ADAPTERS:
            return (ADAPTERS[alias],)
        if alias not in ALIASES or not self.has_key(alias):
            return ()
        if alias == "beta" and ("dpo" in self.choices.values() or self.choices.get("loss") == "preference"):
            return ("loss.beta",)
        if alias == "judge.model" and (
            self.choices.get("judge") == "local" or self.choices.get("judge/chat") in CHATS_WITH_PATH
        ):
            return ("judge.chat.model.path",)
        found = ALIASES[alias]
        keys = (found,) if isinstance(found, str) else found
        if self.verb not in MEASURES:
            return keys
        measured = (OF_HELDOUT.get(key, key) for key in keys)
        return tuple((self.keys(key) or (key,))[0] for key in measured)


def meant(override: str, line: CommandLine | None = None) -> list[str]:
    """Returns the overrides that one on the command line stands for; usually itself.

    Raises:
        ConfigError: it is a setting of another program that none of herl's has the unit of.

    >>> meant("lr=1e-5"), meant("model=Qwen/Qwen2.5-0.5B"), meant("data=my.jsonl")
    (['optimizer.lr=1e-5'], ['model.path=Qwen/Qwen2.5-0.5B'], ['data=file', 'data.train.path=my.jsonl'])
    """
    line = line or CommandLine()
    key, equals, value = override.partition("=")
    bare = value.strip("'\"")
    if not equals:
        return [override]
    if key in OTHER_UNITS:
        raise ConfigError(f"{key}: not a setting of herl, since {OTHER_UNITS[key]}")
    if keys := line.keys(key):
        return [*_chosen_with(key, line), *_set(keys, value)]
    if bare.lower() in (known := CHOICES.get(key, {})):
        return [known[bare.lower()]]
    if key == "data" and _ROWS.match(bare):
        return ["data=file", f"data.train.path={value}"]
    if key == "model" and _MODEL.match(bare):
        return [f"model.path={value}"]
    if key == "data.heldout" and line.has_key(key):
        return _heldout(override, value, bare)
    if key in FUNCTIONS and "=" not in bare:
        return ["judge=function", f"judge.function={value}"]
    return [override]


def translated(overrides: Sequence[str], line: CommandLine | None = None) -> tuple[list[str], list[str]]:
    """Returns overrides with `meant` applied, and a line for each one that changed.

    Raises:
        ConfigError: an override has no counterpart with the same unit.
    """
    line = line or CommandLine(choices=choices(overrides))
    found: list[str] = []
    lines = []
    typed = {one.partition("=")[0] for one in overrides}
    for override in overrides:
        instead = meant(override, line)
        if override.startswith("hydra.run.dir=") and "hydra.sweep.dir" in typed:
            instead = [override]
        if instead != [override]:
            lines.append(f"herl: '{override}' is read as '{' '.join(instead)}'")
        found += [one for one in instead if one == override or one not in (*found, *overrides)]
    return found, lines


def choices(overrides: Sequence[str]) -> dict[str, str]:
    """Returns the choice in each group that overrides name.

    >>> choices(["judge=mine", "seed=1", "++lora=none"])
    {'judge': 'mine', 'lora': 'none'}
    """
    pairs = [one.lstrip("+").partition("=") for one in overrides]
    return {key: value.strip("'\"") for key, _, value in pairs if (conf_dir() / key).is_dir() and key}


def explained(alias: str) -> Iterator[tuple[str, str]]:
    """Yields a line about each thing that an alias stands for, with its key or group ("" for none)."""
    if alias in OTHER_UNITS:
        yield f"'{alias}' is not a setting of herl, since {OTHER_UNITS[alias]}.", ""
    training, measuring = CommandLine().keys(alias), CommandLine(verb="validate").keys(alias)
    for key in training:
        yield f"'{alias}' is read as '{key}'.", key
    for key in set(measuring) - set(training):
        yield f"herl {', '.join(MEASURES)}: '{alias}' is read as '{key}'.", ""
    for value, setting in CHOICES.get(alias, {}).items():
        yield f"'{alias}={value}' is read as '{setting}'.", setting.partition("=")[0]
    if alias in FUNCTIONS:
        yield f"'{alias}=FUNCTION' is read as 'judge=function judge.function=FUNCTION'.", "judge.function"


def _chosen_with(alias: str, line: CommandLine) -> list[str]:
    """The choice that a key needs, unless another is typed or an experiment of the user's may make it."""
    if line.own_experiment:
        return []
    if alias in ADAPTERS and "lora" not in line.choices:
        return ["lora=lora"]
    return ["data=file"] if alias == "data.path" and "data" not in line.choices else []


def _set(keys: tuple[str, ...], value: str) -> list[str]:
    if len(keys) == 2 and re.search(r"[,(]", value):  # a sweep, which must not vary the two independently
        return [f"{keys[1]}={value}", f"{keys[0]}=${{{keys[1]}}}"]
    return [f"{key}={value}" for key in keys]


def _heldout(override: str, value: str, bare: str) -> list[str]:
    """What data.heldout= stands for: a share of the training prompts, none, or a file."""
    if bare.lower() in ("null", "none", "false"):
        return ["data.heldout_share=0"]
    if _ROWS.match(bare):
        return [f"data.heldout.path={value}"]
    try:
        shares = [float(one) for one in bare.split(",")]
    except ValueError:
        return [override]
    if not all(0 <= share < 1 for share in shares):
        raise ConfigError(
            f"data.heldout: expected a share of the training prompts below 1, or a file, got {bare}"
        )
    return [f"data.heldout_share={value}"]
