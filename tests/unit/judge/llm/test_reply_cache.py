import multiprocessing
import sqlite3
import time

import pytest

from herl import ConfigError
from herl.judge.llm import reply_cache
from herl.judge.llm.reply_cache import ReplyCache
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.llm_judges import judge_all, made


def cache(path, **settings):
    opened = ReplyCache(str(path), **settings)
    opened.open()
    return opened


def test_what_was_put_is_there_in_another_process_of_the_cache(tmp_path):
    first, second = cache(tmp_path / "a" / "r.sqlite"), cache(tmp_path / "a" / "r.sqlite")
    first.put("k", "text\x00 with ünïcode")
    assert second.get("k") == "text\x00 with ünïcode"
    assert (second.get("other"), len(second)) == (None, 1)
    first.close(), second.close(), second.close()


def write_many(path, name):
    opened = cache(path)
    for n in range(200):
        opened.put(f"{name}:{n}", "x" * 100)
        opened.put(f"shared:{n}", "y")
    opened.close()


def test_several_processes_write_at_once(tmp_path):
    path = tmp_path / "r.sqlite"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    opened = cache(path)
    assert len(opened) == 800
    opened.close()


def test_the_oldest_replies_go_when_the_file_is_full(tmp_path):
    opened = cache(tmp_path / "r.sqlite", max_mib=1)
    for n in range(1024):
        opened.put(f"{n:04d}", "x" * 3000)
    assert 150 < len(opened) < 400  # of 3 KB each
    assert (opened.get("0000"), opened.get("1023")) == (None, "x" * 3000)
    opened.close()


def test_files_that_cannot_be_used_are_clear_errors(tmp_path):
    (tmp_path / "text").write_text("no database" * 100)
    with pytest.raises(ConfigError, match=r"judge.cache.path: cannot use .*text: file is not a database"):
        cache(tmp_path / "text", mode="offline")
    with pytest.raises(ConfigError, match=r"judge.cache.path: cannot use"):
        cache(tmp_path / "text" / "below.sqlite")
    with pytest.raises(ConfigError, match="expected a file of cached replies, but .* does not exist"):
        ReplyCache(str(tmp_path / "none.sqlite"), mode="offline")
    with pytest.raises(ConfigError, match=r"judge.cache.max_mib: expected at least 1, got 0"):
        ReplyCache(max_mib=0)


# Damage and locks


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """A cache with a reply, which another connection can lock, also against readers."""
    monkeypatch.setattr(reply_cache, "BUSY_SECONDS", 0.2)
    path = tmp_path / "r.sqlite"
    first = cache(path)
    first.put("kept", "reply")
    first.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    yield path, other
    other.close()


def test_a_locked_cache_is_a_miss_that_is_told_once_and_serves_again_when_it_is_free(lock, caplog):
    path, other = lock
    other.execute("BEGIN EXCLUSIVE")
    opened = cache(path)
    started = time.perf_counter()
    for n in range(10):
        assert opened.get("kept") is None
        opened.put(f"{n}", "text")
    assert time.perf_counter() - started < 2.0  # 21 waits of BUSY_SECONDS would be longer
    [line] = [r.getMessage() for r in caplog.records]
    assert f"{path} (judge.cache.path) is locked by another process" in line
    other.execute("COMMIT")
    other.close()
    assert (opened.get("kept"), len(opened)) == ("reply", 1)
    opened.put("new", "text")
    assert opened.get("new") == "text"
    opened.close()


def test_a_lock_does_not_hold_up_the_judge(lock):
    path, other = lock
    other.execute("BEGIN EXCLUSIVE")
    with FakeEndpoint() as endpoint:
        started = time.perf_counter()
        judgements, runner = judge_all(
            made(endpoint, ReplyCache(str(path))), [f"fish {n}" for n in range(30)]
        )
    assert time.perf_counter() - started < 5.0
    assert [judgement.reward for judgement in judgements] == [pytest.approx(0.6)] * 30
    assert (runner.usage["calls"], runner.causes()) == (30, {})


DAMAGE = {
    "the header": lambda data: bytes(100) + data[100:],
    "all but the header": lambda data: data[:100] + b"\xa5" * (len(data) - 100),
    "every other page": lambda data: b"".join(
        data[at : at + 4096] if at % 8192 == 0 else b"\x5a" * 4096 for at in range(0, len(data), 4096)
    ),
    "cut short": lambda data: data[: len(data) // 2],
    "not a database": lambda data: b"no database" * 1000,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_a_miss_that_is_told_once_and_is_not_written_to(kind, tmp_path, caplog):
    path = tmp_path / "r.sqlite"
    before = cache(path)
    for n in range(200):
        before.put(f"{n}", f"reply {n} " + "x" * 200)
    before.close()
    damaged = DAMAGE[kind](path.read_bytes())
    path.write_bytes(damaged)
    opened = cache(path)
    found = [opened.get(f"{n}") for n in range(200)]
    opened.put("new", "text")
    opened.close()
    assert all(text in (None, f"reply {n} " + "x" * 200) for n, text in enumerate(found))
    [line] = [r.getMessage() for r in caplog.records]
    assert f"{path} (judge.cache.path) is damaged" in line
    with FakeEndpoint() as endpoint:
        [judgement], runner = judge_all(made(endpoint, ReplyCache(str(path))), ["fish"])
    assert (judgement.reward, runner.causes(), len(endpoint.sent)) == (pytest.approx(0.6), {}, 1)
    assert path.read_bytes() == damaged


def test_a_reply_that_is_no_text_is_not_kept_and_counts(tmp_path, caplog):
    opened = cache(tmp_path / "r.sqlite")
    opened.put("k", "\ud800")
    assert opened.get("k") is None
    assert "new ones may not be kept" in caplog.text
    opened.close()
