"""An event loop in a separate thread. Coroutines run there; torch stays in the caller's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
ANYTHING = (Exception, SystemExit, KeyboardInterrupt, asyncio.CancelledError)
"""What users' code may raise, in libraries for command lines too."""
STOP_SECONDS = 10.0
"""Limit on what may go on after it was cancelled."""


def is_stopped(error: BaseException) -> bool:
    """Whether an error is the cancelling of the present task itself, and not something that its code met."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


class LoopThread:
    """A running event loop. A `sys.exit` in a coroutine does not end it: it is raised where the result is
    awaited, as any error is. The caller's thread may have a running loop itself, as in a notebook.

    Args:
        name: Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._ends = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._ends:
            with suppress(SystemExit, KeyboardInterrupt):  # asyncio raises these here, too
                self.loop.run_forever()
        with suppress(SystemExit, KeyboardInterrupt):
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def _stop(self) -> None:
        self._ends = True
        self.loop.stop()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine and returns its future."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine to its end and returns its result."""
        return self.submit(work).result()

    def cancel_all(self) -> None:
        """Cancels everything that runs, and waits for it, but not for what ignores that."""
        wait([self.submit(_cancel_all())], STOP_SECONDS)

    def end(self) -> None:
        """Ends the thread. What still runs is abandoned."""
        self.loop.call_soon_threadsafe(self._stop)
        self._thread.join()


async def _cancel_all() -> None:
    running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, but in another thread, so that the caller's may have a running event loop."""
    thread = LoopThread("apart")
    try:
        return thread.run(work)
    finally:
        thread.cancel_all()
        thread.end()


async def in_thread(work: Callable[[], T], name: str) -> T:
    """Like asyncio.to_thread, but the end of the process does not wait for the thread.

    Args:
        work: What the thread does.
        name: Name of the thread.
    """
    done: Future[T] = Future()

    def run() -> None:
        with suppress(InvalidStateError):  # the caller has left
            try:
                done.set_result(work())
            except InvalidStateError:
                raise
            except BaseException as error:
                done.set_exception(error)

    threading.Thread(target=run, daemon=True, name=name).start()
    return await asyncio.wrap_future(done)
