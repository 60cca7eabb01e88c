"""Calls users' functions in a process that can be ended, so that each call has a time limit.

A thread cannot be ended, and one that computes in C may hold the interpreter, so that nothing else runs. One
process (`worker_process`) serves all judges of this one, and many calls at once:

    await asyncio.wrap_future(shared().call("my_rewards.exact", (task, text), {}, seconds=60, ...))

A call that is late ends the process. A new one is started, and the other calls are sent again. If the process
did not even answer, any call in it may have held it: each late one is then tried once more, alone, and only
what is late alone counts as late. The same holds if the process dies. What functions start ends with the
process: it is one group, unless a program leaves it.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import itertools
import logging
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from herl.background.worker_process import (
    CALL,
    LATE,
    RETURNED,
    THREADS,
    Child,
    RaisedError,
    raised,
    text_of,
)
from herl.errors import JudgeError

__all__ = ["THREADS", "RaisedError", "Worker", "raised", "shared"]

logger = logging.getLogger(__name__)

_PATIENCE = 1.0
"""Seconds in which a process that nothing holds answers."""
_IMPORT_NOTE, _IMPORT_SECONDS = 30.0, 600.0
"""Seconds after which a line says that an import is waited for, and after which it is given up."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Call:
    number: int
    path: str
    seconds: float
    late_message: str
    body: bytes
    in_thread: bool
    answer: Future[Any] = field(default_factory=Future)
    timer: asyncio.TimerHandle | None = None
    late: bool = False
    alone: bool = False

    def give(self, result: Any) -> None:
        """Answers the caller, unless it has gone."""
        with suppress(InvalidStateError):
            if isinstance(result, BaseException):
                self.answer.set_exception(result)
            else:
                self.answer.set_result(result)


class Worker:
    """One process, started when it is needed. All its state belongs to the loop of one thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: deque[_Call] = deque()
        self._child: Child | None = None
        self._running: dict[int, _Call] = {}
        """The calls in the process."""
        self._busy: set[asyncio.Task[None]] = set()
        """Starting the process, reading from it, or ending it."""
        self._changing = False
        self._owner = 0
        """The process that opened it: one that was forked from it has neither the thread nor the child."""

    def call(
        self,
        path: str,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        named: Mapping[str, Any],
        *,
        seconds: float,
        key: str,
        then: Callable[[Any], Any] | None = None,
    ) -> Future[Any]:
        """Calls a function in the process. The time in which it is imported does not count.

        Args:
            path: Its path. The process imports it once.
            function: The function as this process has it, which is not called.
            arguments: Its arguments by position.
            named: Its arguments by name.
            seconds: The limit.
            key: The setting with the limit, for the message.
            then: Turns the result, in the process, into what is sent back, e.g. `bool`. It may hold objects
                that are arguments, too: the function and it then see the same ones.

        Returns:
            A future of the result. It raises a `RaisedError` if the function does, and a JudgeError with the
            cause "timeout" if it is late, or with the cause "function" if it ends the process.

        Raises:
            JudgeError: an argument cannot be sent.
        """
        try:
            body = pickle.dumps((path, seconds, then, tuple(arguments), dict(named)), pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # objects of users raise anything
            raise JudgeError(
                f"{path}: its arguments cannot be sent to the process that calls it: {text_of(error)}. Set "
                f"{key}=null to call it in this process",
                "function",
            ) from error
        call = _Call(
            number=next(self._numbers), path=path, seconds=seconds, body=body,
            late_message=f"{path} took longer than {key}={seconds:g} seconds",
            in_thread=not inspect.iscoroutinefunction(function),
        )  # fmt: skip
        self._running_loop().call_soon_threadsafe(self._add, call)
        return call.answer

    def rest(self) -> None:
        """Ends the process if no call is left. The next call starts it again."""
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._rest(), self._loop).result()

    def close(self) -> None:
        """Ends the process and the thread. Calls that are left are canceled. Safe to call twice."""
        with self._opening:
            loop, self._loop = self._loop, None
        if loop is not None and self._owner == os.getpid():
            asyncio.run_coroutine_threadsafe(self._stop(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._opening:
            if self._loop is None:
                self._loop, self._owner = asyncio.new_event_loop(), os.getpid()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="judge worker", daemon=True
                )
                self._thread.start()
                atexit.register(self.close)
            return self._loop

    # Everything below runs on the loop

    def _add(self, call: _Call) -> None:
        self._waiting.append(call)
        self._send()

    def _send(self) -> None:
        """Sends the calls that wait, as far as there is room for them."""
        while self._waiting and not self._changing:
            call, child = self._waiting[0], self._child
            if call.answer.done():
                self._waiting.popleft()
            elif child is None:
                self._do(self._start())
            elif child.exited.is_set() or not self._has_room(call):
                return
            elif call.path not in child.imports:
                child.imports[call.path] = child.ask(call.path)
                self._keep(self._import(child, call.path))
                return
            elif not child.imports[call.path].done():
                return
            else:
                self._waiting.popleft()
                self._running[call.number] = call
                child.send(call.number, CALL, call.body)
                patience = 0 if call.in_thread else _PATIENCE  # the process itself ends late coroutines
                call.timer = asyncio.get_running_loop().call_later(
                    call.seconds + patience, self._is_late, call
                )

    async def _import(self, child: Child, path: str) -> None:
        answer = child.imports[path]
        if not (await asyncio.wait({answer}, timeout=_IMPORT_NOTE))[0]:
            logger.warning("waiting for the import of %s in the process for users' functions", path)
            if not (await asyncio.wait({answer}, timeout=_IMPORT_SECONDS - _IMPORT_NOTE))[0]:
                child.kill(
                    f"was ended, since its import of {path} took longer than {_IMPORT_SECONDS:g} seconds"
                )
        self._send()

    def _has_room(self, call: _Call) -> bool:
        running = self._running.values()
        if call.alone or any(one.alone for one in running):
            return not running
        return not call.in_thread or sum(one.in_thread for one in running) < THREADS

    def _do(self, change: Any) -> None:
        """Changes the process. No call is sent before it is done."""

        async def work() -> None:
            try:
                await change
            finally:
                self._changing = False
            self._send()

        self._changing = True
        self._keep(work())

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)

    async def _start(self) -> None:
        try:
            child = await Child.start(self._take)
        except OSError as error:
            while self._waiting:
                told = f"the process for users' functions cannot be started: {error}"
                self._waiting.popleft().give(JudgeError(told, "function"))
            return
        self._child = child
        self._keep(self._watch(child))

    async def _watch(self, child: Child) -> None:
        code = await child.gone()
        if self._child is child:
            self._died(child, code)

    def _take(self, number: int, kind: int, body: bytes) -> None:
        call = self._running.pop(number, None)
        if call is None:
            return
        _stop_timer(call)
        call.give(_late(call) if kind == LATE else _loaded(call, kind, body))
        self._send()

    def _is_late(self, call: _Call) -> None:
        call.late = True
        if not self._changing and self._child is not None and call.number in self._running:
            self._do(self._end_late(self._child, call))

    async def _end_late(self, child: Child, first: _Call) -> None:
        held = False
        if len(self._running) > 1:
            answered, _ = await asyncio.wait({child.ask(first.path)}, timeout=_PATIENCE)
            held = not answered or not first.in_thread  # its loop, which ends late coroutines, is held too
        if self._child is not child or not any(call.late for call in self._running.values()):
            return
        again: list[_Call] = []
        for call in await self._end(child):
            if call.late and (call.alone or not held):
                call.give(_late(call))
            else:
                call.alone |= call.late
                again.append(call)
        self._send_again(again)

    def _send_again(self, calls: Sequence[_Call]) -> None:
        """Puts them before all others; first those that must run alone."""
        for call in calls:
            call.late = False
        ordered = sorted(calls, key=lambda call: not call.alone)
        self._waiting.extendleft(ordered[::-1])

    def _died(self, child: Child, code: int) -> None:
        self._child = None
        what = child.ended or (f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}")
        calls = self._left()
        importing = {path for path, answer in child.imports.items() if answer.cancelled()}
        for call in calls:
            call.alone |= not importing
        suspects = [call for call in self._waiting if call.path in importing] if importing else calls
        if importing or len(calls) == 1:
            for call in suspects:
                call.give(JudgeError(f"{call.path}: the process that called it {what}", "function"))
        self._send_again(calls)
        self._send()

    async def _rest(self) -> None:
        if self._child is not None and not (self._running or self._waiting or self._changing):
            await self._end(self._child)

    async def _stop(self) -> None:
        self._changing = True  # no call is sent any more
        left = [*self._waiting, *(await self._end(self._child) if self._child is not None else ())]
        self._waiting.clear()
        for call in left:
            call.answer.cancel()
        for task in list(self._busy):
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)
        self._changing = False

    async def _end(self, child: Child) -> list[_Call]:
        """Ends the process. Returns the calls that were running in it."""
        self._child = None
        calls = self._left()
        child.kill()
        await child.gone()
        return calls

    def _left(self) -> list[_Call]:
        """The calls that are running, which are no more."""
        calls = list(self._running.values())
        self._running.clear()
        for call in calls:
            _stop_timer(call)
        return calls


def _stop_timer(call: _Call) -> None:
    if call.timer is not None:
        call.timer.cancel()


def _late(call: _Call) -> JudgeError:
    return JudgeError(call.late_message, "timeout")


def _loaded(call: _Call, kind: int, body: bytes) -> Any:
    try:
        found = pickle.loads(body)
    except BaseException as error:  # objects of users raise anything
        return JudgeError(f"{call.path}: its result cannot be read: {text_of(error)}", "function")
    return found if kind == RETURNED else RaisedError(*found)


_workers: dict[int, Worker] = {}


def shared() -> Worker:
    """Returns the worker of this process; one that was forked has its own."""
    return _workers.setdefault(os.getpid(), Worker())
