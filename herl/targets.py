"""Dotted paths in a configuration or in data -> Python objects."""

from __future__ import annotations

import os
import sys
from typing import Any

from herl.errors import ConfigError, did_you_mean

ALLOWED = ("herl", "lightning", "torch.optim")
"""Packages whose objects a configuration may name; `HERL_ALLOW_TARGETS` adds more."""

MOVED = {
    "herl.loss.Loss": "herl.update.loss.base.Loss",
    "herl.loss.token_weights": "herl.update.loss.base.token_weights",
    "herl.likelihood.LikelihoodLoss": "herl.update.loss.sft.LikelihoodLoss",
    "herl.experience.RolloutPlan": "herl.rollout.stages.RolloutPlan",
    "herl.callbacks.HindsightGate": "herl.hindsight.gate.gated",
    "herl.callbacks.hindsight_gate.HindsightGate": "herl.hindsight.gate.gated",
    "herl.judge.asker.Asker": "herl.judge.llm.client.JudgeClient",
    "herl.judge.questions.Questioner": "herl.judge.llm.prompt.PromptBuilder",
    "herl.memory.Memory": "herl.replay.Replay",
    "herl.memory.NoMemory": "herl.replay.NoReplay",
    "herl.memory.Replay": "herl.replay.ReplayBuffer",
    "herl.judge.JudgeDesk": "herl.judge.JudgeRunner",
    "herl.judge.desk.JudgeDesk": "herl.judge.runner.JudgeRunner",
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
"""Old path -> new path of the objects and modules that a configuration of version 0.1 may name."""


def configured(key: str, path: object) -> Any:
    """Imports an object that a configuration names. Since anyone may write one, packages are restricted.

    Raises:
        ConfigError: the object's package is not allowed, or the import fails as in `located`.
    """
    if not isinstance(path, str):
        raise ConfigError(
            f"{key}: expected the path of an object, such as herl.judge.rule.RuleJudge, got {path!r}"
        )
    more = [name.strip() for name in os.environ.get("HERL_ALLOW_TARGETS", "").split(",") if name.strip()]
    if not any(path == name or path.startswith(f"{name}.") for name in (*ALLOWED, *more)):
        raise ConfigError(
            f"{key}: expected an object from {', '.join((*ALLOWED, *more))}, got '{path}'. If you trust it, "
            f"export HERL_ALLOW_TARGETS={','.join([*more, path.split('.')[0]])}"
        )
    return located(key, path)


def located(key: str, path: str) -> Any:
    """Imports the object at a dotted path, such as a class or a function.

    Raises:
        ConfigError: the import fails; names the key and the error that the import raised.
    """
    from hydra.utils import get_object, log

    log.disabled = True  # it would print the error a second time
    try:
        return get_object(path)
    except Exception as error:  # importing a user's module may raise anything
        if new := moved(path):
            raise ConfigError(f"{key}: expected '{new}', the new path of '{path}'") from error
        module, _, name = path.rpartition(".")
        if module in sys.modules and not hasattr(sys.modules[module], name):
            near = did_you_mean(name, dir(sys.modules[module]))
            raise ConfigError(f"{key}: {module} has no '{name}'.{near}") from error
        raise ConfigError(f"{key}: cannot import '{path}': {type(error).__name__}: {error}") from error


def moved(path: str) -> str | None:
    """Returns the new path of an object that has moved; None for any other."""
    module, _, name = path.rpartition(".")
    if path in MOVED:
        return MOVED[path]
    return f"{MOVED[module]}.{name}" if module in MOVED else None
