"""Names in a configuration or in data -> the Python objects that they stand for."""

from __future__ import annotations

import os
from typing import Any

from herl.errors import ConfigError

ALLOWED = ("herl", "lightning", "torch.optim")
"""Packages that a configuration may name objects of; `HERL_ALLOW_TARGETS` adds others."""


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
        raise ConfigError(f"{key}: cannot import '{path}': {type(error).__name__}: {error}") from error
