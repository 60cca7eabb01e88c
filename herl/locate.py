"""Names in a configuration or in data -> the Python objects that they stand for."""

from __future__ import annotations

from typing import Any

from herl.errors import ConfigError


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
