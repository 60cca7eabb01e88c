"""The folder for files that herl creates or converts outside of any run."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns $HERL_CACHE, or `herl` in the user's cache folder. The folder may not exist yet."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "herl"
    return Path(os.environ.get("HERL_CACHE", default))


def cached_model(name: str) -> Path:
    """Returns the folder of a model that herl converted; it may not exist yet."""
    return cache_folder() / "models" / name


def cached_ifbench() -> Path:
    """Returns the file of IFBench's prompts; it may not exist yet."""
    return cache_folder() / "data" / "ifbench" / "IFBench_test.jsonl"
