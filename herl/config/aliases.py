"""What people type for herl's settings: names from other programs, short ones, and keys at another place."""

from __future__ import annotations

import re

ALIASES = {
    "api_key_env": "judge.chat.api_key_env",
    "base_url": "judge.chat.base_url",
    "batch_size": "data.prompts_per_batch",
    "beta": "loss.kl_coef",
    "budget": "callbacks.answer_budget.answers",
    "cliprange": "loss.clip_high",
    "clip": "loss.clip_high",
    "data.path": "data.train.path",
    "data.train_path": "data.train.path",
    "data.test.path": "data.heldout.path",
    "data.val.path": "data.heldout.path",
    "dtype": "model.dtype",
    "entropy_coef": "loss.entropy_coef",
    "epochs": "trainer.max_epochs",
    "epsilon": "loss.clip_high",
    "eval_steps": "validation.val_check_interval",
    "gpus": "trainer.devices",
    "grad_clip": "module.max_grad_norm",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "group_size": "rollout.attempts_per_prompt",
    "hub_model_id": "push",
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
    "max_tokens": "rollout.attempt.max_new_tokens",
    "model_name_or_path": "model.path",
    "n": "rollout.attempts_per_prompt",
    "num_epochs": "trainer.max_epochs",
    "num_generations": "rollout.attempts_per_prompt",
    "num_train_epochs": "trainer.max_epochs",
    "optimizer.learning_rate": "optimizer.lr",
    "output_dir": "hydra.run.dir",
    "per_device_train_batch_size": "data.prompts_per_batch",
    "precision": "trainer.precision",
    "push_to_hub": "push",
    "rollout.n": "rollout.attempts_per_prompt",
    "rollout.temperature": "rollout.attempt.temperature",
    "rollout.top_p": "rollout.attempt.top_p",
    "save_steps": "callbacks.checkpoints.every_n_batches",
    "scheduler": "module.schedule",
    "temperature": "rollout.attempt.temperature",
    "top_p": "rollout.attempt.top_p",
    "train_batch_size": "data.prompts_per_batch",
    "trainer.epochs": "trainer.max_epochs",
    "trainer.gpus": "trainer.devices",
    "val_check_interval": "validation.val_check_interval",
    "warmup_steps": "module.warmup_steps",
    "weight_decay": "optimizer.weight_decay",
}
"""Keys by what people type for them."""

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
"""Keys of adapters, which also choose lora=lora."""

CHOICES = {
    "bf16": {"true": "trainer.precision=bf16-mixed", "false": "trainer.precision=32-true"},
    "fsdp": {"true": "strategy=fsdp", "false": "strategy=auto"},
    "lora": {"true": "lora=lora", "false": "lora=none"},
    "use_peft": {"true": "lora=lora", "false": "lora=none"},
    "use_vllm": {"true": "sampler=vllm", "false": "sampler=transformers"},
    "wandb": {"true": "logger=[tensorboard,wandb]", "false": "logger=[tensorboard]"},
}
"""Settings by key and value."""

_ROWS = re.compile(r"(hf:\S+|.*\.(jsonl|json|csv|parquet))$")
_MODEL = re.compile(r"[\w.~-]*/\S+$")
_NUMBER = re.compile(r"(0?\.\d+|0)$")


def meant(override: str) -> list[str]:
    """Returns the overrides that one on the command line stands for; usually itself.

    >>> meant("lr=1e-5"), meant("model=Qwen/Qwen2.5-0.5B"), meant("data=my.jsonl")
    (['optimizer.lr=1e-5'], ['model.path=Qwen/Qwen2.5-0.5B'], ['data=file', 'data.train.path=my.jsonl'])
    """
    key, equals, value = override.partition("=")
    bare = value.strip("'\"")
    if not equals:
        return [override]
    if key in ALIASES:
        return [f"{ALIASES[key]}={value}"]
    if key in ADAPTERS:
        return ["lora=lora", f"{ADAPTERS[key]}={value}"]
    if bare.lower() in (known := CHOICES.get(key, {})):
        return [known[bare.lower()]]
    if key == "data" and _ROWS.match(bare):
        return ["data=file", f"data.train.path={value}"]
    if key == "model" and _MODEL.match(bare):
        return [f"model.path={value}"]
    if key == "data.heldout" and _NUMBER.match(bare):
        return [f"data.heldout_share={value}"]
    if key == "data.heldout" and _ROWS.match(bare):
        return [f"data.heldout.path={value}"]
    if key in ("reward", "reward_funcs", "reward_function", "judge.function") and "=" not in bare:
        function = [f"judge.function={value}"]
        return function if key == "judge.function" else ["judge=function", *function]
    return [override]


def translated(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Returns overrides with `meant` applied, and a line for each one that changed."""
    found: list[str] = []
    lines = []
    of_file = not any(re.match(r"data=(?!file$)\w+$", override) for override in overrides)
    for override in overrides:
        own = override.startswith("data.path=") and not of_file  # a key of data=heldout
        instead = [override] if own else meant(override)
        if instead != [override]:
            lines.append(f"herl: '{override}' is read as '{' '.join(instead)}'")
        found += [one for one in instead if one == override or one not in (*found, *overrides)]
    return found, lines
