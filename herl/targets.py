"""Names in a configuration or in data -> the Python objects that they stand for."""

from __future__ import annotations

import os
from typing import Any

from herl.errors import ConfigError

ALLOWED = ("herl", "lightning", "torch.optim")
"""Packages that a configuration may name objects of; `HERL_ALLOW_TARGETS` adds others."""

MOVED = {
    "herl.loss.Loss": "herl.update.loss.base.Loss",
    "herl.likelihood.LikelihoodLoss": "herl.update.loss.sft.LikelihoodLoss",
    "herl.experience.RolloutPlan": "herl.rollout.stages.RolloutPlan",
    "herl.loss": "herl.update.loss.policy",
    "herl.likelihood": "herl.update.loss.dpo",
    "herl.experience": "herl.rollout.collect",
    "herl.memory": "herl.replay",
    "herl.model": "herl.models.pretrained",
    "herl.lora": "herl.models.lora",
    "herl.sharding": "herl.models.fsdp",
    "herl.schedule": "herl.update.schedule",
    "herl.batch": "herl.update.batch",
    "herl.judge.llm": "herl.judge.llm.judge",
    "herl.judge.desk": "herl.judge.runner",
    "herl.judge.asker": "herl.judge.llm.client",
    "herl.judge.questions": "herl.judge.llm.prompt",
    "herl.judge.scale": "herl.judge.llm.scale",
    "herl.judge.reply_cache": "herl.judge.llm.reply_cache",
    "herl.judge.chat": "herl.judge.llm.chat",
    "herl.judge.endpoint": "herl.judge.llm.endpoint",
    "herl.judge.vllm_chat": "herl.judge.llm.server",
    "herl.judge.local": "herl.judge.llm.local",
}
"""Objects and modules of version 0.1 that a configuration may still name, and where they are now."""


def configured(key: str, path: object) -> Any:
    """Imports what a configuration names. A configuration may come from anyone: it cannot name just anything.

    Raises:
        ConfigError: as `located`; or it is in no package that is allowed.
    """
    if not isinstance(path, str):
        raise ConfigError(
            f"{key}: expected the path of an object, as in herl.judge.rule.RuleJudge, got {path!r}"
        )
    more = [name.strip() for name in os.environ.get("HERL_ALLOW_TARGETS", "").split(",") if name.strip()]
    if not any(path == name or path.startswith(f"{name}.") for name in (*ALLOWED, *more)):
        raise ConfigError(
            f"{key}: expected something of {', '.join((*ALLOWED, *more))}, got '{path}'. If you trust it: "
            f"export HERL_ALLOW_TARGETS={','.join([*more, path.split('.')[0]])}"
        )
    return located(key, path)


def located(key: str, path: str) -> Any:
    """Imports what is at a dotted path, such as a class or a function.

    Raises:
        ConfigError: names the key, and what importing the user's module raised.
    """
    from hydra.utils import get_object

    try:
        return get_object(path)
    except Exception as error:  # whatever importing the user's module raises
        if new := moved(path):
            raise ConfigError(f"{key}: expected '{new}', its new name, got '{path}'") from error
        raise ConfigError(f"{key}: cannot import '{path}': {type(error).__name__}: {error}") from error


def moved(path: str) -> str | None:
    """Returns the new path of an object that was moved; None for any other."""
    module, _, name = path.rpartition(".")
    if path in MOVED:
        return MOVED[path]
    return f"{MOVED[module]}.{name}" if module in MOVED else None
