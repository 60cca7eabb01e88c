"""Files that are whole whenever a process dies: written beside their place, then renamed.

A checkpoint, a summary or an exported model is either the old one or the new one. The unfinished one has a
name that ends in `.part`; the next writer of the same file replaces it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from herl.errors import HerlError

PART = ".part"


def part_of(path: Path) -> Path:
    """Returns the place of an unfinished file or folder."""
    return path.with_name(path.name + PART)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields the place to write a file to; when the block ends, the file gets its name.

    Raises:
        HerlError: it cannot be written; names the file, the cause and the free space. The old file is intact.
    """
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        put_in_place(part, path)
    except OSError as error:
        remove(part)
        raise HerlError(f"cannot write {path}: {error} ({free_space(path.parent)})") from error
    except BaseException:
        remove(part)
        raise


def write_whole(path: Path, text: str) -> None:
    """Writes a text file in UTF-8. Raises as `whole` does."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(folder: Path, last: Sequence[str]) -> Iterator[Path]:
    """Yields the place to write a folder's files to; when the block ends, they replace those in the folder.

    Files that were in the folder for other reasons stay.

    Args:
        folder: The folder, created if needed.
        last: The files that make it usable. They are removed first and come last, so that a folder of which
            only a part was moved is never used.

    Raises:
        HerlError: a file cannot be written; names the folder, the cause and the free space.
    """
    part = folder / PART
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove(part)  # of a process that died
        yield part
        written = [path.relative_to(part) for path in part.rglob("*") if path.is_file()]
        for name in last:
            (folder / name).unlink(missing_ok=True)
        for file in sorted(written, key=lambda file: file.as_posix() in last):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            put_in_place(part / file, folder / file)
        remove(part)
    except OSError as error:
        remove(part)
        raise HerlError(f"cannot write {folder}: {error} ({free_space(folder)})") from error


def put_in_place(part: Path, final: Path) -> None:
    """Gives a finished file or folder its name, once it is on the disk.

    Raises:
        OSError: that failed, or the name is that of a folder with files.
    """
    for path in (part, *part.rglob("*")) if part.is_dir() else (part,):
        _sync(path)
    os.replace(part, final)
    with suppress(OSError):  # some file systems cannot do it for a folder
        _sync(final.parent)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder, if it is there. Never fails."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def free_space(folder: Path) -> str:
    """Returns in words how much more fits on the disk of a folder."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with suppress(OSError):
        return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free in {folder}"
    return f"{folder} cannot be read"


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
