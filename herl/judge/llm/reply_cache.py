"""Caches the replies of judging models on disk, so that no request is paid for twice.

One SQLite file, safe for several processes on one machine. A reply is written before its verdict is used,
so a killed run loses only the requests in flight. Keep the file on a local disk: SQLite's locks are
unreliable on network file systems.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from pathlib import Path
from typing import Literal

from herl.cache_folder import cache_folder
from herl.errors import ConfigError, check_at_least

logger = logging.getLogger(__name__)
MIB = 2**20
CHECK_EVERY = 256
"""Writes between two checks of the file's size."""
KEPT_WHEN_FULL = 0.9
"""Share of the maximum size that remains after the oldest replies are dropped."""


class ReplyCache:
    """Maps the hash of a request to the text of its reply.

    Args:
        path: The file; None for `judge/replies.sqlite` in herl's cache folder.
        mode: `read_write`; or `offline`, which sends no requests: one that is not cached abstains and is
            logged.
        max_mib: Size in MiB above which the oldest replies are dropped.
    """

    def __init__(
        self,
        path: str | None = None,
        mode: Literal["read_write", "offline"] = "read_write",
        max_mib: int = 4096,
    ) -> None:
        check_at_least("judge.cache", 1, max_mib=max_mib)
        self.path = Path(path).expanduser() if path else cache_folder() / "judge" / "replies.sqlite"
        self.offline = mode == "offline"
        self.max_mib = max_mib
        self._file: sqlite3.Connection | None = None
        self._writes = 0
        self._warned = False
        if self.offline and not self.path.is_file():
            raise ConfigError(
                f"judge.cache.path: expected a file of cached replies, but {self.path} does not exist"
            )

    def open(self) -> None:
        """Opens the file in this thread, creating it if needed.

        Raises:
            ConfigError: the file cannot be used.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, timeout=60.0, isolation_level=None)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS replies "
                "(key TEXT PRIMARY KEY, text TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID"
            )
            self._file.execute("CREATE INDEX IF NOT EXISTS replies_by_age ON replies (created)")
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise ConfigError(f"judge.cache.path: cannot use {self.path}: {error}") from error

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def get(self, key: str) -> str | None:
        """Returns the reply to a request, or None."""
        assert self._file is not None, "open the cache first"
        found = self._file.execute("SELECT text FROM replies WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def put(self, key: str, text: str) -> None:
        """Stores a reply. If that fails, e.g. on a full disk, the run goes on without caching it."""
        assert self._file is not None, "open the cache first"
        try:
            self._file.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (key, text, time.time()))
            self._writes += 1
            if self._writes % CHECK_EVERY == 0:
                self._drop_oldest()
        except sqlite3.Error as error:
            if not self._warned:
                logger.warning("cannot cache judge replies in %s: %s", self.path, error)
            self._warned = True

    def __len__(self) -> int:
        assert self._file is not None, "open the cache first"
        return int(self._file.execute("SELECT count(*) FROM replies").fetchone()[0])

    def _drop_oldest(self) -> None:
        assert self._file is not None
        pages, free, size = (
            self._file.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        excess = 1.0 - KEPT_WHEN_FULL * self.max_mib * MIB / ((pages - free) * size)
        if excess > 1.0 - KEPT_WHEN_FULL:
            self._file.execute(
                "DELETE FROM replies WHERE key IN (SELECT key FROM replies ORDER BY created LIMIT ?)",
                (math.ceil(excess * len(self)),),
            )
