"""Checkpoints on disk: a file by torch.save, or a folder of shards by torch.distributed.checkpoint.

Whoever wrote one, reading it runs no code. torch reads the folder's `.metadata` and small values with pickle,
without a limit; inside `without_code` they are read by lists of harmless types. Every tensor lies in a
zip archive with a CRC-32 of each record, which torch does not look at: `check_checkpoint_file` does. The one
file without is `.metadata`, so a `CHECKSUMS` file, as `sha256sum` writes it, is kept beside it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from struct import error as StructError
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from herl.distributed import is_first_process
from herl.errors import ConfigError

logger = logging.getLogger(__name__)
METADATA, CHECKSUMS = ".metadata", "CHECKSUMS"
FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's own switch: torch.load then refuses code, even where its caller allows it."""
THREADS = 8
NAMED_TYPES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},  # Python 3.13
}  # fmt: skip
"""What torch writes into `.metadata`, besides torch's data types."""
DAMAGE = (
    zipfile.BadZipFile, OSError, EOFError, ValueError, LookupError, NotImplementedError, RuntimeError,
    StructError, zlib.error,
)  # fmt: skip
"""What Python's zipfile raises at flipped bits."""


def check_checkpoint_file(key: str, path: Path) -> None:
    """Checks that a path is a checkpoint, that it is not damaged, and that no code is in it.

    The first process of a run reads all of it; the others only what is small.

    Raises:
        ConfigError: the path is no checkpoint, or it is damaged; the message begins with the key.
    """
    if path.is_file():
        if is_first_process() and zipfile.is_zipfile(path):
            _check_records(key, path)
        read_file(key, path)
    elif (path / METADATA).is_file():
        _check_shards(key, path)
    else:
        raise ConfigError(f"{key}: expected a checkpoint written by herl fit, got '{path}'")


def read_file(key: str, path: Path) -> dict[str, torch.Tensor]:
    """Returns the weights of a checkpoint file, which are read on first use.

    Raises:
        ConfigError: the file is no checkpoint, or has code in it.
    """
    weights: dict[str, torch.Tensor] = _stored(key, path, path, "state_dict")
    return weights


def check_settings(key: str, path: Path, own: Mapping[str, str | float]) -> None:
    """Checks that a checkpoint, a file or a folder, was written under a model's settings.

    Args:
        key: What messages about the checkpoint begin with.
        path: The checkpoint.
        own: The model's settings, by key (`herl.models.pretrained.PretrainedModel.lasting`).

    Raises:
        ConfigError: a setting differs, or herl did not write the checkpoint.
    """
    file = path / "meta.pt" if path.is_dir() else path
    check_same(_stored(key, path, file, "herl").get("settings", {}), own)


def check_same(stored: Mapping[str, str | float], own: Mapping[str, str | float]) -> None:
    """Checks that none of a model's own settings differs from those stored in a checkpoint.

    Raises:
        ConfigError: names the first setting that does.
    """
    for key, value in own.items():
        if (before := stored.get(key, value)) != value:
            raise ConfigError(
                f"{key}: expected the checkpoint's {before}, got {value}, with which its weights would be "
                "another policy. Repeat the overrides of its run"
            )


def _stored(key: str, path: Path, file: Path, part: str) -> Any:
    """Returns a part of a checkpoint from one of its files."""
    expected = f"{key}: expected a checkpoint written by herl fit, got '{path}'"
    if not zipfile.is_zipfile(file):
        raise ConfigError(expected)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)[part]
    except (pickle.UnpicklingError, RuntimeError, LookupError, TypeError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{expected} ({type(error).__name__}: {said})") from error


def write_checksums(folder: Path) -> None:
    """Keeps the checksum of a folder's `.metadata`; the other files hold their own."""
    digest = hashlib.sha256((folder / METADATA).read_bytes()).hexdigest()
    (folder / CHECKSUMS).write_text(f"{digest}  {METADATA}\n", encoding="utf-8")


@contextmanager
def without_code() -> Iterator[None]:
    """Keeps torch from running code in a checkpoint that is read inside the block.

    Raises:
        ConfigError: torch cannot read it.
    """
    before, given = FileSystemReader.read_metadata, os.environ.get(FORCED)
    FileSystemReader.read_metadata = _read_metadata  # type: ignore[assignment, method-assign]
    os.environ[FORCED] = "1"
    try:
        yield
    except CheckpointException as error:  # no Exception, so nobody else would catch it
        first = next(iter(error.failures.values()))[0]
        said = (str(first).splitlines() or [""])[0]
        raise ConfigError(f"the checkpoint cannot be read: {type(first).__name__}: {said}") from error
    finally:
        FileSystemReader.read_metadata = before  # type: ignore[method-assign]
        if given is None:
            del os.environ[FORCED]
        else:
            os.environ[FORCED] = given


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in NAMED_TYPES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into the metadata of a checkpoint")


def _read_metadata(reader: FileSystemReader, *args: Any, **kwargs: Any) -> Metadata:
    """Does what `FileSystemReader.read_metadata` does, with a limited unpickler."""
    if kwargs.get("rank") is not None:  # herl writes none of these
        raise FileNotFoundError("no metadata of a single rank")
    found = _metadata(Path(reader.path).joinpath(METADATA).read_bytes())
    if getattr(found, "storage_meta", None) is None:
        found.storage_meta = StorageMeta()
    found.storage_meta.load_id = reader.load_id  # type: ignore[union-attr]
    return found


def _metadata(data: bytes) -> Metadata:
    found = _Unpickler(io.BytesIO(data)).load()
    if not isinstance(found, Metadata):
        raise pickle.UnpicklingError(f"expected torch's Metadata, got {type(found).__name__}")
    return found


def _check_shards(key: str, folder: Path) -> None:
    data = (folder / METADATA).read_bytes()
    if (folder / CHECKSUMS).is_file():
        expected = (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace").partition(" ")[0]
        if (got := hashlib.sha256(data).hexdigest()) != expected:
            raise _damaged(key, folder / METADATA, f"expected SHA-256 {expected}, got {got}", folder)
    elif is_first_process():
        logger.warning("%s has no %s: damage may go unnoticed", folder, CHECKSUMS)
    try:
        stored = _metadata(data).storage_data
        places = {(str(one.relative_path), int(one.offset), int(one.length)) for one in stored.values()}
    except Exception as error:  # damaged bytes may raise anything
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{key}: expected a checkpoint written by herl fit, got '{folder}': {METADATA}: {said}"
        ) from error
    if outside := sorted({name for name, _, _ in places if Path(name).name != name}):
        raise ConfigError(f"{key}: expected shards inside '{folder}', got '{outside[0]}'")
    if not is_first_process():
        return
    _check_records(key, folder / "meta.pt", folder)

    def check(place: tuple[str, int, int]) -> None:
        name, offset, length = place
        try:
            with (folder / name).open("rb") as file:
                file.seek(offset)
                archive = zipfile.ZipFile(io.BytesIO(file.read(length)))
            said = _first_damage(archive, archive.infolist())
        except DAMAGE as error:
            said = f"{type(error).__name__}: {error}"
        if said:
            raise _damaged(key, folder / name, f"from byte {offset}: {said}", folder)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(check, sorted(places)))


def _check_records(key: str, path: Path, checkpoint: Path | None = None) -> None:
    """Compares the records of an archive with their checksums."""

    def check(start: int) -> str:
        with zipfile.ZipFile(path) as archive:
            return _first_damage(archive, archive.infolist()[start::THREADS])

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            said = next(filter(None, pool.map(check, range(THREADS))), "")
    except DAMAGE as error:
        said = f"{type(error).__name__}: {error}"
    if said:
        raise _damaged(key, path, said, checkpoint or path)


def _first_damage(archive: zipfile.ZipFile, records: list[zipfile.ZipInfo]) -> str:
    for record in records:
        try:
            with archive.open(record) as file:
                while file.read(2**20):
                    pass
        except DAMAGE as error:
            return f"record {record.filename}: expected CRC-32 {record.CRC:08x}, got other bytes ({error})"
    return ""


def _damaged(key: str, file: Path, said: str, checkpoint: Path) -> ConfigError:
    """The error for a damaged checkpoint, which names the one before it."""
    others = sorted(one for one in checkpoint.parent.glob("batch-*.ckpt") if one.name != checkpoint.name)
    earlier = [one for one in others if one.name < checkpoint.name] or others
    advice = f"use another one of the run: {key}={earlier[-1]}" if earlier else "its folder has no other one"
    return ConfigError(
        f"{key}: '{file}' is damaged, its bytes changed after it was written: {said}; {advice}"
    )
