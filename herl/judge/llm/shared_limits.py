"""Limits that the ranks on one machine share, so that a busy rank uses what idle ranks leave.

The ranks share a small file without a name: all hold it open, and it is gone with the last of them. It says
how many requests each rank has in flight, whether one of its requests waits, and when the next may be sent.
Locks on single bytes of it guard its contents and tell which ranks live: the system drops those of a process
that ends, however it ends. `fcntl.lockf` locks belong to a process, not to the open file, so children that it
forks do not keep them. Nothing waits for a lock on the event loop.

Every rank can have as many requests in flight as if nothing were shared; those beyond are lent, as long as
no rank waits for less than its own.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import tempfile
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from herl.distributed import gather, rank, world_size
from herl.errors import ConfigError

R = TypeVar("R")
CONTENTS_LOCK = 0
"""The byte whose lock guards the contents. A rank that lives locks the byte after it by its place."""
LOCK_AGAIN_SECONDS = 0.001
"""Pause after another process had the lock, which takes some microseconds."""
LOOK_AGAIN_SECONDS = 0.01
"""How often a rank that waits looks whether another one has ended a request. Its own tell it at once."""
RATES = struct.Struct("2d")
RANK = struct.Struct("2q")


def share_file() -> SharedFile | None:
    """Returns the file of the ranks on this machine: those of the same host name that see the same files.
    None for a rank without another one. All ranks must call it.

    Raises:
        ConfigError: the folder of temporary files cannot be written to, or its files cannot be locked.
    """
    if world_size() == 1:
        return None
    try:
        own, path = tempfile.mkstemp(prefix="herl-judge-")
        os.close(own)  # not later: to close a file drops all locks that this process has on it
    except OSError as error:
        raise _unusable(error) from error
    try:
        here = _machine()
        chosen = next(name for host, name in gather((here, path)) if host == here and os.path.exists(name))
        sharing = [place for place, name in enumerate(gather(chosen)) if name == chosen]
        file = None
        if len(sharing) > 1:
            file = SharedFile(os.open(chosen, os.O_RDWR), sharing.index(rank()), len(sharing))
        gather(None)  # now all have opened it
        return file
    except OSError as error:
        raise _unusable(error) from error
    finally:
        os.unlink(path)


def _machine() -> str:
    """Names this machine since it was started: times are compared, and hosts may share a name."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text()}"
    return socket.gethostname()


def _unusable(error: OSError) -> ConfigError:
    return ConfigError(
        "judge.limits: expected a folder of temporary files that this process can write and lock, since "
        f"the ranks on a machine share the limits; TMPDIR names another one. {error}"
    )


class SharedFile:
    """One rank's hold on the file.

    Args:
        file: Descriptor of the open file.
        place: Index of this rank among those that share it, from 0.
        ranks: Number of ranks that share it.
    """

    def __init__(self, file: int, place: int, ranks: int) -> None:
        self.place = place
        self.ranks = ranks
        self.slots: SharedSlots | None = None
        """The newest, whose requests count as this rank's."""
        self._file = file
        self._closes = weakref.finalize(self, os.close, file)
        os.ftruncate(file, RATES.size + ranks * RANK.size)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._life(place))

    def close(self) -> None:
        """Closes the file; its other ranks then count this one as ended."""
        self._closes()
        self._file = -1  # the number may soon be another file's

    async def alone(self, work: Callable[[], R]) -> R:
        """Runs work while no other rank runs any. Work must not be a coroutine, since these locks do not keep
        out the other coroutines of this process."""
        while not self._lock(CONTENTS_LOCK):
            await asyncio.sleep(LOCK_AGAIN_SECONDS)
        try:
            return work()
        finally:
            self._unlock(CONTENTS_LOCK)

    def alone_at_once(self, work: Callable[[], R]) -> R | None:
        """The same for a coroutine that is being canceled and cannot wait. It holds up its event loop for at
        most a tenth of a second, and returns None, with nothing done, if another rank has the lock for so
        long."""
        for _ in range(100):
            if self._lock(CONTENTS_LOCK):
                try:
                    return work()
                finally:
                    self._unlock(CONTENTS_LOCK)
            time.sleep(LOCK_AGAIN_SECONDS)
        return None

    def rates(self) -> list[float]:
        """Returns the times at which the buckets of requests and of tokens are empty, by `time.monotonic`."""
        return list(RATES.unpack(os.pread(self._file, RATES.size, 0)))

    def write_rates(self, rates: list[float]) -> None:
        """Writes what `rates` returns."""
        os.pwrite(self._file, RATES.pack(*rates), 0)

    def others(self) -> list[tuple[int, bool]]:
        """Returns the requests in flight of each other rank that is busy, and whether it waits. One that has
        ended is not."""
        found = []
        records = os.pread(self._file, self.ranks * RANK.size, self._record(0))
        for place, (in_flight, waits) in enumerate(RANK.iter_unpack(records)):
            if place == self.place or not (in_flight or waits):
                continue
            if self._lock(self._life(place)):  # nobody holds it: that rank has ended
                self._unlock(self._life(place))
                os.pwrite(self._file, RANK.pack(0, 0), self._record(place))
            else:
                found.append((in_flight, bool(waits)))
        return found

    def write(self, in_flight: int, waits: bool) -> None:
        """Writes what others read of this rank, unless the file is closed."""
        if self._file >= 0:
            os.pwrite(self._file, RANK.pack(in_flight, waits), self._record(self.place))

    def _record(self, place: int) -> int:
        return RATES.size + place * RANK.size

    def _life(self, place: int) -> int:
        return CONTENTS_LOCK + 1 + place

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):  # another process has it
            return False
        return True

    def _unlock(self, byte: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)


class SharedSlots:
    """A semaphore of as many slots as the ranks have together. Within a rank, first come is first served.

    Args:
        file: The file that the ranks share.
        of_each: Slots of each rank.
    """

    def __init__(self, file: SharedFile, of_each: int) -> None:
        self._file = file
        self._file.slots = self
        self._of_each = of_each
        self._taken = 0
        self._write(waits=False)
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    async def __aenter__(self) -> None:
        async with self._turn:
            try:
                while not await self._file.alone(self._take):
                    self._freed.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                            await self._freed.wait()
            finally:
                if self._waits:  # canceled
                    self._write(waits=False)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taken -= 1
        self._write(self._waits)
        self._freed.set()

    def _take(self) -> bool:
        """Takes a slot if one is free, and this rank has less than its own or nobody waits for that."""
        others = self._file.others()
        free = self._of_each * self._file.ranks - self._taken - sum(in_flight for in_flight, _ in others)
        is_owed = any(waits and in_flight < self._of_each for in_flight, waits in others)
        takes = free > 0 and (self._taken < self._of_each or not is_owed)
        self._taken += takes
        self._write(waits=not takes)
        return takes

    def _write(self, waits: bool) -> None:
        self._waits = waits
        if self._file.slots is self:  # a request of an earlier run may end late
            self._file.write(self._taken, waits)


class SharedRate:
    """A leaky bucket, as `aiolimiter.AsyncLimiter`, into which several ranks pour.

    A rank books one request ahead, so that ranks that wait take turns. A request that is canceled while it
    waits gives back what it had booked.

    Args:
        file: The file that the ranks share.
        bucket: 0 for requests, 1 for tokens.
        max_rate: Size of the bucket.
        time_period: Seconds in which a full bucket empties.
    """

    def __init__(self, file: SharedFile, bucket: int, max_rate: float, time_period: float) -> None:
        self.max_rate = max_rate
        self._file = file
        self._bucket = bucket
        self._time_period = time_period
        self._turn = asyncio.Lock()

    async def acquire(self, amount: float = 1.0) -> None:
        """Waits until the bucket has room for an amount, at most `max_rate`."""
        async with self._turn:
            pause = await self._file.alone(partial(self._book, amount))
            try:
                if pause > 0:
                    await asyncio.sleep(pause)
            except asyncio.CancelledError:
                self._file.alone_at_once(partial(self._pour, -amount))
                raise

    def _book(self, amount: float) -> float:
        """Pours an amount in; returns in how many seconds it has room."""
        now = time.monotonic()  # the same for all processes of a machine
        return self._pour(amount, at_least=now) - now - self._time_period

    def _pour(self, amount: float, at_least: float = 0.0) -> float:
        """Pours an amount in, or a negative one out; returns when the bucket is empty."""
        rates = self._file.rates()
        rates[self._bucket] = max(rates[self._bucket], at_least) + amount * self._time_period / self.max_rate
        self._file.write_rates(rates)
        return rates[self._bucket]
