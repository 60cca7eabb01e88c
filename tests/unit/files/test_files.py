"""A process that dies between any two file operations leaves the old file or the new one."""

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from herl.callbacks import BestCheckpoint, Checkpoints
from herl.errors import HerlError, TrainingError
from herl.files import PART, whole, whole_folder, write_whole

EVENTS = ("open", "os.rename", "os.remove", "os.symlink", "os.mkdir", "os.rmdir", "shutil.rmtree")


class Killed(BaseException):
    pass


class Killer:
    """Ends file operations below a folder after a given number of them, as SIGKILL would."""

    folder, left = None, 0

    def __call__(self, event, arguments):
        if self.folder is None or event not in EVENTS or "pyc" in str(arguments[0]):
            return
        if str(arguments[0]).startswith(str(self.folder)) or event == "shutil.rmtree":
            self.left -= 1
            if self.left < 0:  # a dead process does nothing anymore
                raise Killed


killer = Killer()
sys.addaudithook(killer)


def killed(folder, work, operations):
    """Whether the work was killed after this many operations."""
    killer.folder, killer.left = folder, operations
    try:
        work()
    except Killed:
        return True
    finally:
        killer.folder = None
    return False


def trainer(text, sharded=False):
    def save_checkpoint(path, weights_only=False):
        if sharded:
            path.mkdir(exist_ok=True)
        for place in (path / "a", path / "b") if sharded else (path,):
            place.write_text(text)
            with place.open("a") as file:  # a second operation: there may be half of it
                file.write(text)

    strategy = SimpleNamespace(broadcast=lambda value: value)
    return SimpleNamespace(
        save_checkpoint=save_checkpoint, strategy=strategy, is_global_zero=True, loggers=[], global_step=0
    )


def text_file(folder, text):
    write_whole(folder / "summary.json", text)


def best(folder, text, sharded=False):
    one = BestCheckpoint(str(folder))
    one.on_start(trainer(text), None)
    one._save_checkpoint(trainer(text, sharded), str(folder / "best.ckpt"))


def sharded_best(folder, text):
    best(folder, text, sharded=True)


def last(folder, text, sharded=False):
    one = Checkpoints(str(folder), keep=1)
    one.on_start(trainer(text), SimpleNamespace(counts={"batches": 0}))
    one._save(trainer(text, sharded), f"batch-0000000{text}.ckpt")


def sharded_last(folder, text):
    last(folder, text, sharded=True)


def export(folder, text):
    with whole_folder(folder / "model", last=("config.json",)) as part:
        for name in ("config.json", "model.safetensors"):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_text(text)


def contents(path):
    files = path.rglob("*") if path.is_dir() else [path]
    return "".join(sorted(file.read_text() for file in files if file.is_file() and PART not in file.parts))


@pytest.mark.parametrize(
    ("write", "name", "old", "new"),
    [
        (text_file, "summary.json", "1", "2"),
        (best, "best.ckpt", "11", "22"),
        (sharded_best, "best.ckpt", "1111", "2222"),
        (last, "last.ckpt", "11", "22"),
        (sharded_last, "last.ckpt", "1111", "2222"),
        (export, "model", "11", "22"),
    ],
)
def test_a_kill_between_two_operations_leaves_the_old_or_the_new(tmp_path, write, name, old, new):
    found = set()
    for operations in range(100):
        folder = tmp_path / str(operations)
        folder.mkdir()
        write(folder, "1")
        died = killed(folder, lambda folder=folder: write(folder, "2"), operations)
        if write is not export or (folder / name / "config.json").exists():  # without it nothing loads it
            assert contents(folder / name) in (old, new)
            found.add(contents(folder / name))
        write(folder, "2")
        assert contents(folder / name) == new
        left = sorted(path.name for path in folder.rglob("*"))
        assert not [path for path in left if path.endswith(PART)], left
        assert len(list(folder.glob("*.ckpt"))) <= 2
        if not died:
            break
    assert operations > 2
    assert found == {old, new}


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("write", [text_file, best, sharded_best, last, export])
@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_full_disk_names_file_and_free_space_and_the_old_file_stays(tmp_path, monkeypatch, write, call):
    write(tmp_path, "1")
    before = {path: path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()}
    monkeypatch.setattr(call, full)
    with pytest.raises(
        HerlError, match=rf"cannot write .*{tmp_path}.*No space left.* MiB are free in"
    ) as stop:
        write(tmp_path, "2")
    assert (write in (best, sharded_best, last)) == isinstance(stop.value, TrainingError)
    monkeypatch.undo()
    after = {path: path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()}
    if write is not export:  # the first of its files to be replaced is removed before
        assert after == before
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(PART)]


def test_what_else_lies_in_an_exported_folder_stays(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.md").write_text("mine")
    export(tmp_path, "1")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json", "model.safetensors", "notes.md",
    ]  # fmt: skip


def test_an_error_in_the_block_writes_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "a.json") as part:
        part.write_text(str(1 / 0))
    assert os.listdir(tmp_path) == []
    assert Path(tmp_path).exists()
