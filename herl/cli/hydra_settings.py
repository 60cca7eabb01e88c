"""Checks Hydra's own settings, before Hydra acts on them.

Files in a --config-dir may set anything below `hydra`, and Hydra builds callbacks, launchers and log handlers
from there long before herl looks at the configuration. They are held to the rules of `herl.targets`.
Environment variables, which could lift those rules, are not set there, and log files have Hydra's own name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
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
LOG_FILE = "${hydra.runtime.output_dir}/${hydra.job.name}.log"
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
            check_hydra(config)
        except ConfigError as error:  # Hydra would show a stack trace
            from herl.cli.main import fail

            fail(str(error))
        return config

    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = compose  # type: ignore[method-assign]


def check_hydra(config: DictConfig) -> None:
    """Checks what Hydra would build, write and put into the environment, in a composed configuration.

    Raises:
        ConfigError: something else than a component of herl or of an allowed package would be built, a log
            would go into another file than the run's, or a variable would be set.
    """
    for name in BUILT:
        node = _plain(config, f"hydra.{name}")
        if name != "callbacks" and isinstance(node, dict) and str(node.get("_target_")).startswith(PLUGINS):
            node = {key: value for key, value in node.items() if key != "_target_"}
        check_targets(f"hydra.{name}", node)
    for name in LOGS:
        _check_logs(f"hydra.{name}", _written(config.hydra, name))
    for name in _plain(config, "hydra.job.env_set") or {}:
        raise ConfigError(f"hydra.job.env_set.{name}: expected no environment variable: export {name}")


def _check_logs(key: str, node: Any) -> None:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if (name == "()" or name == "class") and value not in LOG_CLASSES:
                raise ConfigError(
                    f"{key}.{name}: expected one of {', '.join(sorted(LOG_CLASSES))}, got {value!r}"
                )
            if name != "filename":
                _check_logs(f"{key}.{name}", value)
            elif value != LOG_FILE:
                raise ConfigError(f"{key}.filename: expected {LOG_FILE}, got {value!r}")
    elif isinstance(node, list):
        for place, value in enumerate(node):
            _check_logs(f"{key}.{place}", value)
    elif isinstance(node, str) and node.startswith("ext://") and node not in STREAMS:
        raise ConfigError(f"{key}: expected {' or '.join(STREAMS)}, got {node!r}")
    elif isinstance(node, str) and "${" in node:
        raise ConfigError(f"{key}: expected a value that is written out, got {node!r}")


def _written(node: DictConfig, name: str) -> Any:
    """A part of the configuration, with its interpolations as they are written."""
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    return plain.get(name)


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
