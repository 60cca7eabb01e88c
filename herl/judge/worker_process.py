"""The process behind `herl.judge.worker`: reads calls from its first pipe, and writes results to its second.

Each message is a header and a body. What functions print goes to stderr, so it cannot break the protocol.
Plain functions run in threads and coroutine functions on one loop, so many calls run at once. The process
ends with its parent: its input ends then, and on Linux the kernel ends it even if a function holds the
interpreter.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import linecache
import os
import pickle
import pkgutil
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from herl.errors import HerlError

HEADER = struct.Struct("!QQB")
"""Number of the call, bytes in the body, and what the body is."""
CALL, IMPORT = 0, 1
"""What a request's body is: a pickled call; or the pickled path of a function to import, and the folders to
find it in, `sys.path`. The reply to the latter has no body."""
IMPORTED, RETURNED, RAISED, LATE = 0, 1, 2, 3
"""What a reply's body is."""
THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Plain functions that run at once, as many as in asyncio's own threads."""


class RaisedError(Exception):
    """A user's function raised.

    Args:
        kind: Name of the exception's type.
        message: Its text.
        file: The user's file.
        line: The innermost line of that file, from 1.
        of_machine: Whether a package, a file or memory is missing, which says nothing about the answer.
    """

    def __init__(self, kind: str, message: str, file: str, line: int, of_machine: bool) -> None:
        super().__init__(kind, message, file, line, of_machine)
        self.kind, self.message, self.file, self.line = kind, message, file, line
        self.of_machine = of_machine

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    @property
    def place(self) -> str:
        """The line: its place and its text."""
        if not self.file:
            return ""
        path = os.path.relpath(self.file)
        shown = self.file if path.startswith("..") else path
        return f"  {shown}:{self.line}: {linecache.getline(self.file, self.line).strip()}"


def raised(function: Callable[..., Any] | None, error: BaseException) -> RaisedError:
    """Returns what a function raised, with the innermost line of the function's own file. If the call itself
    failed, it is the line where the function is defined."""
    frames = traceback.extract_tb(error.__traceback__)
    codes = [getattr(f, "__code__", None) for f in (inspect.unwrap(function), function)] if function else []
    code = next((code for code in codes if code is not None), None)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    if code is not None and not own:
        file, line = code.co_filename, code.co_firstlineno
    elif last := (own or list(frames))[-1:]:
        file, line = last[0].filename, last[0].lineno or 0
    else:
        file, line = "", 0
    of_machine = isinstance(error, HerlError | ImportError | OSError | MemoryError)
    return RaisedError(type(error).__name__, str(error), file, line, of_machine)


class _Process:
    """The calls of this process."""

    def __init__(self, replies: IO[bytes]) -> None:
        self._replies = replies
        self._writing = threading.Lock()
        self._functions: dict[str, Callable[..., Any] | Exception] = {}
        self._threads = ThreadPoolExecutor(THREADS)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def serve(self, requests: IO[bytes]) -> None:
        """Starts every call that comes, until there will be no more."""
        while header := requests.read(HEADER.size):
            number, length, kind = HEADER.unpack(header)
            body = requests.read(length)
            if kind == IMPORT:
                self._import(*pickle.loads(body))
                self._reply(number, IMPORTED, b"")
            else:
                self._start(number, body)

    def _import(self, path: str, folders: list[str]) -> None:
        sys.path[:] = folders
        if path not in self._functions:
            try:
                self._functions[path] = pkgutil.resolve_name(path)
            except Exception as error:  # a user's module may raise anything
                self._functions[path] = error

    def _start(self, number: int, body: bytes) -> None:
        try:
            path, seconds, as_bool, arguments, named = pickle.loads(body)
        except Exception as error:  # what unpickling raises is the user's classes' too
            self._failed(number, None, error)
            return
        function = self._functions[path]
        if isinstance(function, Exception):
            self._failed(number, None, function)
            return
        if inspect.iscoroutinefunction(function):
            work = self._awaited(number, function, seconds, as_bool, arguments, named)
            asyncio.run_coroutine_threadsafe(work, self._loop)
        else:
            self._threads.submit(self._called, number, function, as_bool, arguments, named)

    async def _awaited(
        self,
        number: int,
        function: Callable[..., Any],
        seconds: float,
        as_bool: bool,
        arguments: Any,
        named: Any,
    ) -> None:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                result = await function(*arguments, **named)
        except BaseException as error:
            self._failed(number, function, error, limit.expired())
        else:
            self._returned(number, function, result, as_bool)

    def _called(
        self, number: int, function: Callable[..., Any], as_bool: bool, arguments: Any, named: Any
    ) -> None:
        try:
            result = function(*arguments, **named)
            if inspect.isawaitable(result):
                result = asyncio.run_coroutine_threadsafe(_result_of(result), self._loop).result()
        except BaseException as error:
            self._failed(number, function, error)
        else:
            self._returned(number, function, result, as_bool)

    def _returned(self, number: int, function: Callable[..., Any], result: Any, as_bool: bool) -> None:
        try:
            body = pickle.dumps(bool(result) if as_bool else result, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            kind = type(result).__name__
            told = TypeError(
                f"its result, a {kind}, cannot be sent to the run ({error}); expected numbers, texts, "
                f"or a Judgement"
            )
            self._failed(number, function, told)
        else:
            self._reply(number, RETURNED, body)

    def _failed(
        self, number: int, function: Callable[..., Any] | None, error: BaseException, late: bool = False
    ) -> None:
        if late and isinstance(error, TimeoutError):
            self._reply(number, LATE, b"")
        else:
            self._reply(number, RAISED, pickle.dumps(raised(function, error).args))

    def _reply(self, number: int, kind: int, body: bytes) -> None:
        with self._writing:
            self._replies.write(HEADER.pack(number, len(body), kind) + body)
            self._replies.flush()


async def _result_of(awaitable: Any) -> Any:
    return await awaitable


def main() -> None:
    """Serves calls until the parent has gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    try:
        _Process(replies).serve(requests)
    finally:
        os._exit(0)  # threads may never end
