"""Tells the folders of runs that this user started from those of strangers.

A run's folder gets a signature of what Hydra wrote there, made with a key that lies in the user's cache
folder and nowhere else. A folder that came from somewhere else, or that was changed, has no valid one.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from herl.cache_folder import cache_folder

logger = logging.getLogger(__name__)
KEY_BYTES = 32
SIGNATURE = "signature"
SIGNED = ("overrides.yaml", "hydra.yaml")


def sign(kept: Path) -> None:
    """Signs the files in a run's `.hydra`, if Hydra wrote any; warns if there is no key."""
    if not kept.is_dir():
        return
    try:
        (kept / SIGNATURE).write_text(_signature(kept, _key()) + "\n", encoding="utf-8")
    except OSError as error:
        logger.warning("cannot sign this run; commands with run=... treat it as a stranger's: %s", error)


def is_own(kept: Path) -> bool:
    """Whether the files in a run's `.hydra` are as a command of this user left them."""
    try:
        given = (kept / SIGNATURE).read_text(encoding="utf-8").strip()
        return hmac.compare_digest(given.encode(), _signature(kept, _key()).encode())
    except (OSError, UnicodeDecodeError):
        return False


def _signature(kept: Path, key: bytes) -> str:
    made = hmac.new(key, digestmod="sha256")
    for name in SIGNED:
        data = (kept / name).read_bytes()
        made.update(len(data).to_bytes(8, "big") + data)
    return made.hexdigest()


def _key() -> bytes:
    """The user's key, which is made at its first use."""
    path = cache_folder() / "own_runs.key"
    with suppress(FileNotFoundError):
        return _read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):
            os.link(made, path)  # of several commands, one makes it
    finally:
        made.unlink(missing_ok=True)
    return _read(path)


def _read(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise OSError(f"expected {KEY_BYTES} bytes in {path}, got {len(key)}: remove it")
    return key
