"""Dotted paths in a configuration or in data -> Python objects.

Anyone may write a configuration, so a path alone is not believed: what is checked is the object that was
found there. It must be defined, and not only imported, in a module of herl's components, be one of a few
kinds of classes of lightning and torch.optim, or belong to a package that the user allowed.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from herl.errors import ConfigError, did_you_mean

ALLOWED = ("herl", "lightning", "torch.optim")
"""Packages whose components a configuration may name; `HERL_ALLOW_TARGETS` adds more."""
COMPONENTS = (
    "herl.advantages", "herl.bonus", "herl.callbacks", "herl.cli.compare_sweep", "herl.cli.run_folder",
    "herl.data", "herl.environment", "herl.evaluation.audit", "herl.hindsight", "herl.judge", "herl.loggers",
    "herl.models.fsdp", "herl.models.lora", "herl.models.pretrained", "herl.module", "herl.replay",
    "herl.rollout.stages", "herl.sampler", "herl.selection", "herl.types", "herl.update.loss",
    "herl.verifiers",
)  # fmt: skip
"""Modules of herl whose public classes are components."""
FUNCTIONS = (
    "herl.advantages", "herl.data", "herl.environment.catalog", "herl.evaluation.published", "herl.hindsight",
    "herl.judge.aggregation", "herl.selection", "herl.update.loss", "herl.verifiers.data",
)  # fmt: skip
"""Modules of herl whose public functions are components, too."""
KINDS = {
    "lightning.fabric.loggers.logger.Logger",
    "lightning.pytorch.callbacks.callback.Callback",
    "lightning.pytorch.core.datamodule.LightningDataModule",
    "lightning.pytorch.profilers.profiler.Profiler",
    "lightning.pytorch.strategies.strategy.Strategy",
    "lightning.pytorch.trainer.trainer.Trainer",
    "torch.optim.optimizer.Optimizer",
}
"""Classes of lightning and torch.optim that are components, with those that inherit from them."""


def configured(key: str, path: object) -> Any:
    """Imports an object that a configuration names. Since anyone may write one, objects are restricted.

    Raises:
        ConfigError: the object's package is not allowed, it is defined elsewhere or is no component, or the
            import fails as in `located`.
    """
    if not isinstance(path, str):
        raise ConfigError(
            f"{key}: expected the path of an object, such as herl.judge.rule.RuleJudge, got {path!r}"
        )
    more = [name.strip() for name in os.environ.get("HERL_ALLOW_TARGETS", "").split(",") if name.strip()]
    packages = (*ALLOWED, *more)
    if not _within(path, packages):  # before anything is imported
        raise ConfigError(
            f"{key}: expected an object from {', '.join(packages)}, got '{path}'. If you trust it, "
            f"export HERL_ALLOW_TARGETS={','.join([*more, path.split('.')[0]])}"
        )
    found = located(key, path)
    home, name = _definition(found)
    if callable(found) and (_within(home, more) or _is_component(found, home, name)):
        return found
    if not callable(found) or not home:
        raise ConfigError(f"{key}: expected a class or a function, got '{path}', a {type(found).__name__}")
    if _within(home, packages):
        raise ConfigError(f"{key}: expected a component, got '{path}', which no setting of a run may name")
    raise ConfigError(
        f"{key}: expected an object that {', '.join(packages)} defines, got '{path}', that is {home}.{name}. "
        f"If you trust it, export HERL_ALLOW_TARGETS={','.join([*more, home])} and name it by that path"
    )


def check_targets(key: str, value: object) -> None:
    """Checks every `_target_` in a part of a configuration, without a look at its arguments.

    Raises:
        ConfigError: an object is not allowed, as in `configured`.
    """
    if isinstance(value, Mapping):
        if "_target_" in value:
            configured(f"{key}._target_", value["_target_"])
        for name, child in value.items():
            check_targets(f"{key}.{name}", child)
    elif isinstance(value, list):
        for place, child in enumerate(value):
            check_targets(f"{key}.{place}", child)


def _definition(found: object) -> tuple[str, str]:
    """The module that defines what would be called, and its name there; ("", "") if nobody knows.

    An instance belongs to its class's module, and a partial function to the function's.
    """
    while isinstance(found, partial):
        found = found.func
    home = getattr(found, "__module__", None)
    name = getattr(found, "__qualname__", type(found).__qualname__)
    return (home, name) if isinstance(home, str) else ("", "")


def _is_component(found: object, home: str, name: str) -> bool:
    """Whether an object is a component of herl, lightning or torch.optim."""
    if "." in name or name.startswith("_"):  # methods and what is private
        return False
    if inspect.isfunction(found):
        return _within(home, FUNCTIONS)
    if not inspect.isclass(found):
        return False
    kinds = {f"{base.__module__}.{base.__qualname__}" for base in found.__mro__}
    return _within(home, COMPONENTS) or (_within(home, ALLOWED[1:]) and not KINDS.isdisjoint(kinds))


def _within(path: str, packages: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in packages)


def located(key: str, path: str) -> Any:
    """Imports the object at a dotted path, such as a class or a function.

    Raises:
        ConfigError: the import fails; names the key and the error that the import raised.
    """
    from hydra.utils import get_object, log

    log.disabled = True  # it would print the error a second time
    try:
        return get_object(path)
    except (Exception, SystemExit) as error:  # importing a user's module may raise anything
        module, _, name = path.rpartition(".")
        if module in sys.modules and not hasattr(sys.modules[module], name):
            near = did_you_mean(name, dir(sys.modules[module]))
            raise ConfigError(f"{key}: {module} has no '{name}'.{near}") from error
        reason = " ".join(str(error).split())
        raise ConfigError(f"{key}: cannot import '{path}': {type(error).__name__}: {reason}") from error
