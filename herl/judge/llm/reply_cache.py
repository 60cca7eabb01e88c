"""Caches the replies of judging models on disk, so that no request is paid for twice.

One SQLite file, safe for several processes on one machine. A reply is written before its verdict is used,
so a killed run loses only the requests in flight. Keep the file on a local disk: SQLite's locks are
unreliable on network file systems.

The cache saves money, and nothing else depends on it. What it cannot read, because another process locks the
file or a page is damaged, counts as not cached; what it cannot write is not kept. Each kind of trouble is
reported once. Nothing is written into a damaged file, and it is not moved: another run may use it, and SQLite
would then mix the journals of the old file and a new one.
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
BUSY_SECONDS = 5.0
"""How long an operation waits for another process's lock."""
HURRIED_SECONDS = 0.02
"""The same after one that waited in vain, until the file is free again."""
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
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
        self._prepared = self._hurried = self._damaged = False
        self._writes = 0
        self._told: set[str] = set()
        if self.offline and not self.path.is_file():
            raise ConfigError(
                f"judge.cache.path: expected a file of cached replies, but {self.path} does not exist"
            )

    def open(self) -> None:
        """Opens the file, creating it if needed. It is then used in the same thread, until `close`.

        Raises:
            ConfigError: the file cannot be created, or it holds no cache, in offline mode.
        """
        self._prepared = self._hurried = self._damaged = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            self._prepare(self._file)
        except (OSError, sqlite3.Error) as error:
            passing = _code(error) in LOCKED or (_code(error) in DAMAGED and not self.offline)
            if self._file is not None and passing:
                self._tell(error, self._file)
                return
            self.close()
            raise ConfigError(f"judge.cache.path: cannot use {self.path}: {error}") from error

    def _prepare(self, file: sqlite3.Connection) -> None:
        """Sets the file up, which a lock may have prevented before."""
        if not self._prepared:
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = NORMAL")
            file.execute(
                "CREATE TABLE IF NOT EXISTS replies "
                "(key TEXT PRIMARY KEY, text TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID"
            )
            file.execute("CREATE INDEX IF NOT EXISTS replies_by_age ON replies (created)")
            self._prepared = True

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def get(self, key: str) -> str | None:
        """Returns the reply to a request, or None if the cache lacks it or cannot read it."""
        assert self._file is not None, "open the cache first"
        if self._damaged and not self._prepared:
            return None
        try:
            self._prepare(self._file)
            found = self._file.execute("SELECT text FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            self._tell(error, self._file)
            return None
        self._wait_again(self._file)
        return None if found is None else str(found[0])

    def put(self, key: str, text: str) -> None:
        """Stores a reply. If that fails, e.g. on a full disk, the run goes on without caching it."""
        assert self._file is not None, "open the cache first"
        if self._damaged:
            return
        try:
            self._prepare(self._file)
            self._file.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (key, text, time.time()))
            self._writes += 1
            if self._writes % CHECK_EVERY == 0:
                self._drop_oldest()
        except (sqlite3.Error, UnicodeError) as error:  # a lone surrogate is no text for SQLite
            self._tell(error, self._file)
        else:
            self._wait_again(self._file)

    def _tell(self, error: Exception, file: sqlite3.Connection) -> None:
        """Says once for each kind of trouble what it means."""
        if _code(error) in LOCKED:
            kind = "locked by another process: until it is free, replies are requested again and not kept"
            file.execute(f"PRAGMA busy_timeout = {HURRIED_SECONDS * 1000:.0f}")
            self._hurried = True
        elif _code(error) in DAMAGED:
            kind = "damaged: unreadable replies are requested again, and nothing is added. To start a new "
            kind += "one, move the file away while no run uses it"
            self._damaged = True
        else:
            kind = "failing: unreadable replies are requested again, and new ones may not be kept"
        if kind not in self._told:
            self._told.add(kind)
            logger.warning("the judge's reply cache %s (judge.cache.path) is %s (%s)", self.path, kind, error)

    def _wait_again(self, file: sqlite3.Connection) -> None:
        if self._hurried:
            file.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
            self._hurried = False

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


def _code(error: Exception) -> int | None:
    """SQLite's primary code of an error."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
