import multiprocessing

import pytest

from herl import ConfigError
from herl.judge.llm.reply_cache import ReplyCache


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
        cache(tmp_path / "text")
    with pytest.raises(ConfigError, match=r"judge.cache.path: cannot use"):
        cache(tmp_path / "text" / "below.sqlite")
    with pytest.raises(ConfigError, match="expected a file of cached replies, but .* does not exist"):
        ReplyCache(str(tmp_path / "none.sqlite"), mode="offline")
    with pytest.raises(ConfigError, match=r"judge.cache.max_mib: expected at least 1, got 0"):
        ReplyCache(max_mib=0)
