"""No coroutine ends the loop that runs it."""

import asyncio
import threading
from contextlib import suppress

import pytest

from herl.background.loop import ANYTHING, LoopThread, is_stopped, run_apart


@pytest.fixture
def thread():
    made = LoopThread("test")
    yield made
    made.cancel_all()
    made.end()


@pytest.mark.parametrize("error", [SystemExit(2), KeyboardInterrupt(), ValueError("no")])
def test_what_a_task_raises_reaches_its_caller_and_the_loop_goes_on(thread, error):
    async def fails():
        raise error

    async def beside_another():
        await asyncio.gather(asyncio.sleep(0), fails())

    for work in (fails, beside_another):
        with pytest.raises(type(error)):
            thread.submit(work()).result(timeout=20)
    assert thread.submit(asyncio.sleep(0, "well")).result(timeout=20) == "well"


def test_an_end_does_not_wait_for_what_ignores_that_it_was_cancelled(monkeypatch):
    monkeypatch.setattr("herl.background.loop.STOP_SECONDS", 0.1)
    go_on = [True]

    async def deaf():
        while go_on:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    made = LoopThread("test")
    left = made.submit(deaf())
    made.cancel_all()
    assert not left.done()
    go_on.clear()
    left.result(timeout=20)
    made.end()


def test_a_caller_may_have_a_running_loop_itself_as_in_a_notebook():
    made = LoopThread("test")

    async def cell():
        in_executor = made.run(_in_executor())
        made.cancel_all()
        made.end()
        return in_executor, run_apart(asyncio.sleep(0, "well"))

    assert asyncio.run(cell()) == ("done", "well")
    assert made.loop.is_closed()


async def _in_executor():
    return await asyncio.to_thread(lambda: "done")


def test_code_that_stops_its_loop_does_not_end_it(thread):
    async def stops():
        asyncio.get_running_loop().stop()

    for _ in range(2):
        thread.submit(stops()).result(timeout=20)
    assert thread.submit(asyncio.sleep(0, "well")).result(timeout=20) == "well"


def test_what_runs_apart_is_over_when_it_returns():
    left = []

    async def leaves_another():
        left.append(asyncio.create_task(asyncio.sleep(60)))
        await asyncio.sleep(0)
        raise KeyError("no")

    with pytest.raises(KeyError):
        run_apart(leaves_another())
    assert left[0].cancelled()
    assert not [one for one in threading.enumerate() if one.name == "apart"]


def test_only_the_cancelling_of_the_task_itself_stops_it(thread):
    async def waits(awaited):
        try:
            await awaited
        except ANYTHING as error:
            return is_stopped(error)

    async def both():
        other = asyncio.get_running_loop().create_future()
        other.cancel()
        mine = asyncio.create_task(waits(asyncio.sleep(60)))
        await asyncio.sleep(0)
        mine.cancel()
        return await waits(other), await mine

    assert thread.run(both()) == (False, True)
