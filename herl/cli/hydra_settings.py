"""Checks Hydra's own settings, before Hydra acts on them.

Files in a --config-dir may set anything below `hydra`, and Hydra builds callbacks, launchers and log handlers
from there long before herl looks at the configuration. They are held to the rules of `herl.targets`. An
environment variable, which could lift those rules, counts only if it was typed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from herl.errors import ConfigError
from herl.targets import check_targets

BUILT = ("callbacks", "launcher", "sweeper")
LOGS = ("hydra_logging", "job_logging")
LOG_CLASSES = {
    "logging.Formatter",
    "logging.FileHandler",
    "logging.NullHandler",
    "logging.StreamHandler",
    "colorlog.ColoredFormatter",
}
"""What a log handler or formatter may be; the rest of Python's logging opens sockets or calls anything."""
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")
"""Packages of launchers and sweepers; Hydra itself refuses one that is not installed as a plug-in."""


@contextmanager
def checked_settings() -> Iterator[None]:
    """Checks every configuration that Hydra composes inside the block, before it is used."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    compose = ConfigLoaderImpl.load_configuration

    def load_configuration(
        self: Any, config_name: str | None, overrides: list[str], *rest: Any, **more: Any
    ) -> Any:
        config = compose(self, config_name, overrides, *rest, **more)
        try:
            check_hydra(config, overrides)
        except ConfigError as error:  # Hydra would show a stack trace
            from herl.cli.main import fail

            fail(str(error))
        return config

    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = compose  # type: ignore[method-assign]


def check_hydra(config: DictConfig, typed: Sequence[str]) -> None:
    """Checks what Hydra would build, and what it would put into the environment.

    Args:
        config: A composed configuration, with its `hydra`.
        typed: The overrides of the command line.

    Raises:
        ConfigError: something else than a component of herl or of an allowed package would be built.
    """
    for name in BUILT:
        node = _plain(config, f"hydra.{name}")
        if name != "callbacks" and isinstance(node, dict) and str(node.get("_target_")).startswith(PLUGINS):
            node = {key: value for key, value in node.items() if key != "_target_"}
        check_targets(f"hydra.{name}", node)
    for name in LOGS:
        _check_logs(f"hydra.{name}", _plain(config, f"hydra.{name}"))
    by_hand = [one.lstrip("+").partition("=")[0] for one in typed]
    for name in _plain(config, "hydra.job.env_set") or {}:
        if not {"hydra.job.env_set", f"hydra.job.env_set.{name}"} & set(by_hand):
            raise ConfigError(
                f"hydra.job.env_set.{name}: a file may not set environment variables: export {name} yourself"
            )


def _check_logs(key: str, node: Any) -> None:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if (name == "()" or name == "class") and value not in LOG_CLASSES:
                raise ConfigError(
                    f"{key}.{name}: expected one of {', '.join(sorted(LOG_CLASSES))}, got {value!r}"
                )
            _check_logs(f"{key}.{name}", value)
    elif isinstance(node, list):
        for place, value in enumerate(node):
            _check_logs(f"{key}.{place}", value)
    elif isinstance(node, str) and node.startswith("ext://") and node not in STREAMS:
        raise ConfigError(f"{key}: expected {' or '.join(STREAMS)}, got {node!r}")


def _plain(config: Any, key: str) -> Any:
    """A part of the configuration, with what its interpolations refer to as far as that is known yet."""
    node = config
    for name in key.split("."):
        node = _child(node, name)
    return _resolved(node)


def _resolved(node: Any) -> Any:
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        return {str(name): _resolved(_child(node, name)) for name in node}
    if isinstance(node, ListConfig) and not node._is_none() and not node._is_missing():
        return [_resolved(_child(node, place)) for place in range(len(node))]
    return None if isinstance(node, DictConfig | ListConfig) else node


def _child(node: Any, name: Any) -> Any:
    """A value; None if it is absent, or its interpolation needs what only a run knows."""
    with suppress(OmegaConfBaseException, KeyError):
        return node[name] if isinstance(node, DictConfig | ListConfig) else None
    return None
