"""Limits shared by the ranks on a machine: real processes, and a real endpoint that counts what it gets."""

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiolimiter import AsyncLimiter

from herl import ConfigError
from herl.distributed import gather, rank, together, world_size
from herl.judge import JudgeRunner
from herl.judge.llm import client, shared_limits
from herl.judge.llm.chat import Chat
from herl.judge.llm.client import JudgeClient, Limits
from herl.judge.llm.endpoint import Endpoint
from herl.judge.llm.judge import LLMJudge
from herl.judge.llm.shared_limits import SharedFile, SharedRate, SharedSlots, share_file
from herl.judge.mix import WeightedJudges
from herl.testing import make_rollout
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.llm_judges import TASK
from tests.support.ranks import run_on_ranks, start_on_ranks

NEVER = 3600.0


class CountingEndpoint(FakeEndpoint):
    """Counts requests by model and by the word after "phase" in the answer."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.open, self.most, self.times = Counter(), Counter(), defaultdict(list)

    async def _reply(self, head, body, writer):
        phase = re.search(r"phase (\w+)", body["messages"][-1]["content"])[1]
        name = f"{body['model']} {phase}"
        self.open[name] += 1
        self.most[name] = max(self.most[name], self.open[name])
        self.times[name].append(time.monotonic())
        try:
            if phase == "hangs":
                await asyncio.sleep(NEVER)
            return await super()._reply(head, body, writer)
        finally:
            self.open[name] -= 1


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of temporary files of this test and its processes."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def judge_of(url, model="m", **limits):
    return LLMJudge(Endpoint(url, model), limits=Limits(tries=1, **limits))


def submitted(runner, phase, count):
    return [
        runner.submit(TASK, make_rollout(f"phase {phase} fish {n} of {rank()}", id=f"{phase}/{n}"))
        for n in range(count)
    ]


def all_judged(futures):
    assert [future.result().judgement.reward for future in futures] == [pytest.approx(0.6)] * len(futures)


def opened(judge):
    runner = JudgeRunner(judge, concurrency=999)
    together(runner.open)
    return runner


# Requests in flight


def _together_and_alone(url, temporary):
    runner = opened(judge_of(url, concurrency=3))
    assert not list(temporary.iterdir())  # the file that they share has no name any more
    all_judged(submitted(runner, "together", 20))
    gather(None)
    if rank() == 0:
        all_judged(submitted(runner, "alone", 40))
    gather(None)
    # A rank that comes late, while another one uses all slots, gets its share at once
    busy = submitted(runner, "busy", 150) if rank() == 0 else []
    while rank() == 0 and sum(one.done() for one in busy) < 20:
        time.sleep(0.01)
    gather(None)
    if rank() == 1:
        all_judged(submitted(runner, "late", 12))
        late_at = time.monotonic()
        runner.close()
        gather(late_at)
    else:
        all_judged(busy)
        busy_at = time.monotonic()
        runner.close()
        late_at = gather(busy_at)[1]
        assert rank() != 0 or late_at < busy_at - 0.3


@pytest.mark.integration
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_never_exceed_the_limit_and_one_alone_uses_all_of_it(tmp_path, temporary, ranks):
    with CountingEndpoint(seconds=0.05) as endpoint:
        run_on_ranks(_together_and_alone, ranks, tmp_path, endpoint.url, temporary)
    assert endpoint.most["m together"] == 3 * ranks
    assert endpoint.most["m alone"] == 3 * ranks
    assert endpoint.most["m busy"] == 3 * ranks
    assert endpoint.most["m late"] >= 3
    assert endpoint.open_most == 3 * ranks


def _hold_and_go_on(url, folder):
    runner = opened(judge_of(url, concurrency=2))
    if rank() == 1:
        submitted(runner, "hangs", 6)
        time.sleep(NEVER)
    while not (folder / "go").exists():
        time.sleep(0.02)
    others = submitted(runner, "others", 10)
    (folder / f"asked {rank()}").touch()
    all_judged(others)
    runner.close()


@pytest.mark.integration
def test_the_slots_of_a_killed_rank_are_free_again(tmp_path, temporary):
    with CountingEndpoint(seconds=0.05) as endpoint:
        ranks = start_on_ranks(_hold_and_go_on, 3, tmp_path, endpoint.url, tmp_path).processes
        try:
            while endpoint.open["m hangs"] < 6 and all(one.is_alive() for one in ranks):
                time.sleep(0.02)
            (tmp_path / "go").touch()
            while len(list(tmp_path.glob("asked *"))) < 2 and all(one.is_alive() for one in ranks):
                time.sleep(0.02)
            time.sleep(0.3)
            assert endpoint.sent == [], "requests that hang are not answered, and no other one has been sent"
            os.kill(ranks[1].pid, signal.SIGKILL)
            for one in ranks:
                one.join(60)
        finally:
            for one in ranks:
                one.kill()
                one.join()
    assert [one.exitcode for one in ranks] == [0, -signal.SIGKILL, 0]
    assert len(endpoint.sent) == 20
    assert endpoint.most["m others"] == 6
    assert not list(temporary.iterdir())


# Rates


def _rates(url, folder):
    _take_turns()
    runner = opened(judge_of(url, requests_per_minute=300, concurrency=20))
    gather(None)
    if rank() == 0:
        started = time.monotonic()
        (folder / "started").write_text(repr(started))
        all_judged(submitted(runner, "rate", 306))
        assert 1.1 < time.monotonic() - started < 30  # its half alone would take a minute
    gather(None)
    all_judged(submitted(runner, "rate", 4))
    gather(None)
    runner.close()


def _take_turns():
    file, amounts = share_file(), [8.0, 25.0, 3.0, 40.0, 14.0] * 2

    async def pour():
        rate = SharedRate(file, 1, max_rate=40.0, time_period=0.8)
        times = []
        for amount in amounts:
            await rate.acquire(amount)
            times.append((time.monotonic(), rank(), amount))
        return times

    gather(None)
    times, ranks, poured = zip(
        *sorted(one for part in gather(asyncio.run(pour())) for one in part), strict=True
    )
    assert highest_level(times, 50.0, poured) <= 41.0
    assert times[-1] - times[0] >= (sum(poured) - 40.0) / 50.0 - 0.02
    both = ranks[max(map(ranks.index, (0, 1))) : len(ranks) - max(map(ranks[::-1].index, (0, 1)))]
    assert max(len(list(row)) for _, row in groupby(both)) <= 2, ranks


def highest_level(times, per_second, amounts):
    """Of a bucket that empties at this rate, by the times at which amounts were poured in."""
    level, last, highest = 0.0, times[0], 0.0
    for now, amount in zip(times, amounts, strict=True):
        level = max(level - (now - last) * per_second, 0.0) + amount
        last, highest = now, max(highest, level)
    return highest


@pytest.mark.integration
def test_one_rank_uses_the_rate_of_all_and_together_they_never_exceed_it(tmp_path, temporary):
    with CountingEndpoint() as endpoint:
        run_on_ranks(_rates, 2, tmp_path, endpoint.url, tmp_path)
    started, times = float((tmp_path / "started").read_text()), endpoint.times["m rate"]
    assert len(times) == 314
    assert all(place <= 300 + 5.0 * (at - started) for place, at in enumerate(times, 1))


def file_of(path, place=0, ranks=2):
    return SharedFile(os.open(path, os.O_RDWR | os.O_CREAT), place, ranks)


def test_the_times_of_the_next_requests_are_those_of_a_naive_bucket(tmp_path, monkeypatch):
    """Requests come at random times, one after the other."""
    draw, clock = random.Random(1), SimpleNamespace(now=1e5)
    monkeypatch.setattr(shared_limits, "time", SimpleNamespace(monotonic=lambda: clock.now))
    rate = SharedRate(file_of(tmp_path / "file"), 0, max_rate=30.0, time_period=12.0)
    level, last = 0.0, clock.now
    for _ in range(2000):
        clock.now += draw.choice([0.0, 0.0, 1.0, 8.0])
        amount = draw.uniform(0.1, 30.0)
        pause = max(0.0, rate._book(amount))
        send = clock.now
        level = max(level - (send - last) * 2.5, 0.0)
        if (over := level + amount - 30.0) > 0:  # wait until as much has leaked out
            send += over / 2.5
            level -= over
        level, last = level + amount, send
        assert clock.now + pause == pytest.approx(send, abs=1e-5)
        clock.now = send


def test_requests_and_tokens_have_buckets_of_their_own(tmp_path):
    file = file_of(tmp_path / "file")

    async def both():
        requests, tokens = (SharedRate(file, bucket, 10.0, 1000.0) for bucket in (0, 1))
        await requests.acquire(10.0)
        await tokens.acquire(10.0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(requests.acquire(1.0), 0.05)

    asyncio.run(both())


def test_a_request_that_is_canceled_gives_back_what_it_booked(tmp_path):
    """Otherwise each one that gives up makes the next one wait longer, on all ranks."""
    file = file_of(tmp_path / "file")

    async def give_up_again_and_again():
        rate = SharedRate(file, 0, 10.0, 1000.0)
        await rate.acquire(10.0)
        before = file.rates()
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(rate.acquire(10.0), 0.01)
        assert file.rates() == pytest.approx(before, abs=1e-3)

    asyncio.run(give_up_again_and_again())


# Within a process


def test_what_ends_late_writes_neither_for_a_newer_run_nor_into_another_file(tmp_path):
    file = file_of(tmp_path / "file", ranks=1)

    async def end_late():
        old = SharedSlots(file, 2)
        await old.__aenter__()
        new = SharedSlots(file, 2)
        await new.__aenter__()
        await new.__aenter__()
        await old.__aexit__(None, None, None)
        assert (tmp_path / "file").read_bytes()[16:24] == (2).to_bytes(8, "little")
        file.close()
        with (tmp_path / "another").open("wb+") as another:  # gets the descriptor's number
            another.write(b"A" * 64)
            another.flush()
            await new.__aexit__(None, None, None)
            assert (tmp_path / "another").read_bytes() == b"A" * 64

    asyncio.run(end_late())


def test_slots_are_given_in_order_and_canceled_waits_leave_no_trace(tmp_path):
    file, order = file_of(tmp_path / "file", ranks=1), []

    async def use(slots, name):
        async with slots:
            order.append(name)
            await asyncio.sleep(0.01)

    async def all_of_them():
        slots = SharedSlots(file, 2)
        async with slots, slots:
            waiting = asyncio.create_task(use(slots, "never"))
            await asyncio.sleep(0.05)
            assert slots._waits
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert not slots._waits
        await asyncio.gather(*(use(slots, name) for name in range(9)))
        assert slots._taken == 0

    asyncio.run(all_of_them())
    assert order == list(range(9))


def test_what_a_process_held_is_free_when_it_ends(tmp_path):
    path = tmp_path / "file"
    code = (
        "import os, sys, time\n"
        "from herl.judge.llm.shared_limits import SharedFile\n"
        f"file = SharedFile(os.open({str(path)!r}, os.O_RDWR), 1, 2)\n"
        "file.write(3, True)\n"
        "print('ready', flush=True)\n"
        "time.sleep(3600)\n"
    )
    file = file_of(path)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        assert file.others() == [(3, True)]
        other.kill()
        other.wait()
        assert file.others() == []


# Who shares


class OwnModel(Chat):
    identity, of_each_rank = "own", True

    async def complete(self, request):
        raise NotImplementedError


def _who_shares(url, temporary):
    own = JudgeClient(OwnModel(), Limits(), None)
    own.prepare()
    assert own._shared is None
    assert isinstance(client._slots(8, own._shared), asyncio.Semaphore)

    judges = {name: judge_of(url, name, concurrency=size) for name, size in (("one", 1), ("two", 2))}
    runner = opened(WeightedJudges(judges))
    gather(None)
    all_judged(submitted(runner, "mix", 20))
    runner.close()
    gather(None)

    # Two ranks on one machine, and a third one alone on another
    socket.gethostname = lambda: "abb"[rank()]
    some = judge_of(url, requests_per_minute=300.0)
    for _ in range(2):
        some.prepare()
    assert [one and (one.place, one.ranks) for one in gather(_ranks_of(some))] == [None, (0, 2), (1, 2)]
    limiter = client._limiter(300.0, some.client._shared, 0)
    assert type(limiter) is (SharedRate if rank() else AsyncLimiter)
    assert limiter.max_rate == (200.0 if rank() else 100.0)
    some.close()
    assert some.client._shared is None
    socket.gethostname = lambda: "same"
    some.prepare()
    assert some.client._shared.ranks == world_size()

    # Processes with the same host name that see no files of each other
    exists = os.path.exists
    os.path.exists = lambda path: exists(path) and Path(path).parent.name == f"of_{rank()}"
    own_folder = temporary / f"of_{rank()}"
    own_folder.mkdir()
    tempfile.tempdir = str(own_folder)
    assert share_file() is None
    os.path.exists = exists
    assert not list(own_folder.iterdir())

    tempfile.tempdir = str(temporary / "missing") if rank() == 2 else str(own_folder)
    with pytest.raises(ConfigError, match=r"judge\.limits: expected a folder of temporary files .* TMPDIR"):
        together(share_file)
    gather(None)
    assert not list(own_folder.iterdir())


def _ranks_of(judge):
    shared = judge.client._shared
    return shared and SimpleNamespace(place=shared.place, ranks=shared.ranks)


@pytest.mark.integration
def test_ranks_that_share_are_those_of_a_machine_and_each_judge_has_limits_of_its_own(tmp_path, temporary):
    with CountingEndpoint(seconds=0.05) as endpoint:
        run_on_ranks(_who_shares, 3, tmp_path, endpoint.url, temporary)
    assert endpoint.most == {"one mix": 3, "two mix": 6}


def test_a_process_alone_shares_nothing(monkeypatch):
    monkeypatch.setattr(tempfile, "mkstemp", lambda **settings: pytest.fail("a file was made"))
    with FakeEndpoint() as endpoint:
        judge = judge_of(endpoint.url, requests_per_minute=100.0, tokens_per_minute=1e6)
        with JudgeRunner(judge) as runner:
            all_judged([runner.submit(TASK, make_rollout("fish"))])
            assert type(judge.client._slots) is asyncio.Semaphore
            for limiter, most in ((judge.client._requests, 100.0), (judge.client._tokens, 1e6)):
                assert type(limiter) is AsyncLimiter
                assert (limiter.max_rate, limiter.time_period) == (most, 60.0)
