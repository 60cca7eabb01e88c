"""The process of `herl.background.worker`: reads calls from its first pipe, writes results to its second.

Each message is a header and a body. What functions print goes to its third pipe, so it cannot break the
protocol, and `herl.display.terminal` shows it.
Plain functions run in threads and coroutine functions on one loop, so many calls run at once. The process
ends with its parent: its input ends then, and on Linux the kernel ends it even if a function holds the
interpreter.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import io
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
from contextlib import suppress
from typing import IO, Any

from herl.display.terminal import say
from herl.errors import HerlError

HEADER = struct.Struct("!QQB")
"""Number of the request, bytes in the body, and what the body is."""
CALL, IMPORT = 0, 1
"""What a request's body is: a pickled call; or the pickled path of a function to import, and the folders to
find it in, `sys.path`. The reply to the latter has its number and no body."""
IMPORTED, RETURNED, RAISED, LATE = 0, 1, 2, 3
"""What a reply's body is."""
THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Plain functions that run at once, as many as in asyncio's own threads."""

Then = Callable[[Any], Any] | None

_START = "import sys; sys.path[:] = {path!r}; from herl.background.worker_process import main; main()"
_LAST_REPLIES = 1.0
"""Seconds in which the replies of a process that has ended are read."""
_LINE = 10_000
"""Bytes of a printed line that are kept until it ends."""


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


def text_of(error: BaseException) -> str:
    """Returns the text of an exception, also if it cannot tell it."""
    try:
        return str(error)
    except Exception as failed:
        return f"(no text: its __str__ raised {type(failed).__name__})"


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
    return RaisedError(type(error).__name__, text_of(error), file, line, of_machine)


class Child(asyncio.SubprocessProtocol):
    """The process as its parent sees it.

    Args:
        take: Gets the number, the kind and the body of each reply.
    """

    def __init__(self, take: Callable[[int, int, bytes], None]) -> None:
        self.imports: dict[str, asyncio.Future[None]] = {}
        """Path of each function -> whether the process has answered that it is imported."""
        self.ended = ""
        """Why it was ended, if it was."""
        self._take = take
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._replies, self._printed = bytearray(), bytearray()
        self.exited, self._closed = asyncio.Event(), asyncio.Event()

    @classmethod
    async def start(cls, take: Callable[[int, int, bytes], None]) -> Child:
        """Returns a new process. Raises OSError if there can be none."""
        _, child = await asyncio.get_running_loop().subprocess_exec(
            lambda: cls(take),
            sys.executable, "-c", _START.format(path=_folders()),
            start_new_session=True,  # Ctrl-C is for the run, which ends this process
        )  # fmt: skip
        return child

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.SubprocessTransport = transport
        self.pid: int = transport.get_pid()

    def send(self, number: int, kind: int, body: bytes) -> None:
        requests: Any = self._transport.get_pipe_transport(0)
        requests.write(HEADER.pack(number, len(body), kind) + body)

    def ask(self, path: str) -> asyncio.Future[None]:
        """Asks for an import; if there was one, the answer only shows that nothing holds the process. The
        answer is canceled if the process ends."""
        number = len(self._asked)
        self._asked[number] = asyncio.get_running_loop().create_future()
        self.send(number, IMPORT, pickle.dumps((path, _folders())))
        return self._asked[number]

    def kill(self, why: str = "") -> None:
        """Ends the process and all that functions have started in it."""
        self.ended = self.ended or why
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def gone(self) -> int:
        """Waits until it has ended, and takes its last replies. Returns its code."""
        await self.exited.wait()
        with suppress(TimeoutError):  # its pipes stay open in a program that has left its group
            await asyncio.wait_for(self._closed.wait(), _LAST_REPLIES)
        self._transport.close()
        return self._transport.get_returncode() or 0

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        (self._replied if fd == 1 else self._print)(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 2 and self._printed:
            self._print(b"\n")

    def process_exited(self) -> None:
        self.kill()  # what it leaves behind holds its pipes
        for answer in self._asked.values():
            answer.cancel()
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()

    def _replied(self, data: bytes) -> None:
        self._replies += data
        while len(self._replies) >= HEADER.size:
            number, length, kind = HEADER.unpack_from(self._replies)
            if len(self._replies) < HEADER.size + length:
                return
            body = bytes(self._replies[HEADER.size : HEADER.size + length])
            del self._replies[: HEADER.size + length]
            if kind != IMPORTED:
                self._take(number, kind, body)
            elif not self._asked[number].done():
                self._asked[number].set_result(None)

    def _print(self, data: bytes) -> None:
        self._printed += data
        *lines, rest = self._printed.split(b"\n")
        if len(rest) > _LINE:
            lines, rest = [*lines, rest], bytearray()
        self._printed = rest
        if lines:
            say(b"\n".join(lines).decode(errors="backslashreplace"), stderr=True)


def _folders() -> list[str]:
    return [str(folder) for folder in sys.path]


class _Process:
    """The calls of this process."""

    def __init__(self, replies: IO[bytes]) -> None:
        self._replies = replies
        self._writing = threading.Lock()
        self._functions: dict[str, Callable[..., Any] | BaseException] = {}
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
            except BaseException as error:  # a user's module may raise anything, such as SystemExit
                self._functions[path] = error

    def _start(self, number: int, body: bytes) -> None:
        try:
            path, seconds, then, arguments, named = pickle.loads(body)
        except BaseException as error:  # what unpickling raises is the user's classes' too
            self._failed(number, None, error)
            return
        function = self._functions[path]
        if isinstance(function, BaseException):
            self._failed(number, None, function)
            return
        if inspect.iscoroutinefunction(function):
            work = self._awaited(number, function, seconds, then, arguments, named)
            asyncio.run_coroutine_threadsafe(work, self._loop)
        else:
            self._threads.submit(self._called, number, function, then, arguments, named)

    async def _awaited(
        self,
        number: int,
        function: Callable[..., Any],
        seconds: float,
        then: Then,
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
            self._returned(number, function, result, then)

    def _called(
        self, number: int, function: Callable[..., Any], then: Then, arguments: Any, named: Any
    ) -> None:
        try:
            result = function(*arguments, **named)
            if inspect.isawaitable(result):
                result = asyncio.run_coroutine_threadsafe(_result_of(result), self._loop).result()
        except BaseException as error:
            self._failed(number, function, error)
        else:
            self._returned(number, function, result, then)

    def _returned(self, number: int, function: Callable[..., Any], result: Any, then: Then) -> None:
        try:
            body = pickle.dumps(then(result) if then else result, pickle.HIGHEST_PROTOCOL)
        except BaseException as error:
            kind = type(result).__name__
            told = TypeError(
                f"its result, a {kind}, cannot be sent to the run ({text_of(error)}); expected numbers, "
                f"texts, or a Judgement"
            )
            self._failed(number, function, told)
        else:
            self._reply(number, RETURNED, body)

    def _failed(
        self, number: int, function: Callable[..., Any] | None, error: BaseException, late: bool = False
    ) -> None:
        if late and isinstance(error, TimeoutError):
            self._reply(number, LATE, b"")
            return
        try:
            body = pickle.dumps(raised(function, error).args)
        except BaseException:  # an exception's own methods may raise anything, and a call needs a reply
            body = pickle.dumps((type(error).__name__, "", "", 0, False))
        self._reply(number, RAISED, body)

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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the process is ended, which loses what is not written
    try:
        _Process(replies).serve(requests)
    finally:
        os._exit(0)  # threads may never end
