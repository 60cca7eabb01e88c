"""Which GPU the servers of a run take, before one is started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from herl.errors import ConfigError

STARTS = ("herl.judge.llm.server.VLLMChat", "herl.sampler.vllm_server.VLLMServerSampler")
"""Classes that start vLLM servers."""
SHARES = ("--gpu-memory-utilization", "--kv-cache-memory-bytes")
"""Arguments of a server by which it shares a GPU."""


def check_servers(config: DictConfig) -> None:
    """Refuses servers of a run on GPUs that would take almost all of the first one, where the trainer is.

    Raises:
        ConfigError: names the key of such a server.
    """
    for key, node in _nodes(OmegaConf.to_container(config, resolve=False), ""):
        if node.get("_target_") not in STARTS or not node.get("start", 1) or node.get("gpus") is not None:
            continue
        if not any(str(given).startswith(SHARES) for given in node.get("arguments") or ()):
            raise ConfigError(
                f"{key}.gpus: expected the GPUs of the server, such as "
                f"{'[7]' if 'start' in node else '7'}, got null: it would take nine tenths of the first GPU, "
                f"which the trainer uses. To share that one, limit the server: "
                f"'{key}.arguments=[--gpu-memory-utilization,0.3]'"
            )


def _nodes(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields all mappings of a configuration with their keys."""
    if isinstance(node, Mapping):
        yield key, node
        for name, child in node.items():
            yield from _nodes(child, f"{key}.{name}" if key else str(name))
