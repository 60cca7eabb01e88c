"""The folder of a run in which one bit is flipped, as each command reads it."""

import atexit
import tempfile
from functools import cache
from pathlib import Path

import torch
from hypothesis import strategies as st

from herl.cli.past_overrides import config_dirs, past_overrides
from herl.models.checkpoint_file import check_checkpoint_file, read_file
from herl.records.inspect import Query, find
from herl.report.run_files import read_run
from tests.support.runs import SMALL, herl_here

CASE = st.tuples(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 7))


@cache
def _run():
    """A real run's folder, its files by kind, and the weights of its checkpoint."""
    temporary = tempfile.TemporaryDirectory()
    atexit.register(temporary.cleanup)
    folder = Path(temporary.name) / "run"
    done = herl_here("fit", *SMALL, f"hydra.run.dir={folder}", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    checkpoint = (folder / "checkpoints" / "last.ckpt").resolve()
    files = {
        "overrides": [folder / ".hydra" / "overrides.yaml", folder / ".hydra" / "hydra.yaml"],
        "records": sorted((folder / "records").glob("*.jsonl")),
        "report": [folder / "summary.json", folder / "config.yaml"],
        "checkpoint": [checkpoint],
    }
    weights = {name: tensor.clone() for name, tensor in read_file("checkpoint", checkpoint).items()}
    return folder, files, weights


def flipped(case):
    """The files are read, with another value of the right type if need be, or an error says what is wrong."""
    number, place, bit = case
    folder, files, weights = _run()
    kind = sorted(files)[number % len(files)]
    path = files[kind][number // len(files) % len(files[kind])]
    whole = path.read_bytes()
    data = bytearray(whole)
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        _read(kind, folder, path, weights)
    finally:
        path.write_bytes(whole)
    return f"{kind} read"


def _read(kind, folder, path, weights):
    if kind == "checkpoint":
        check_checkpoint_file("checkpoint", path)
        got = read_file("checkpoint", path)
        assert got.keys() == weights.keys()
        assert all(torch.equal(got[name], weights[name]) for name in weights)
    elif kind == "overrides":
        past_overrides([f"run={folder}"])
        config_dirs(str(folder / ".hydra"))
    elif kind == "records":
        find(folder, Query())
    else:
        read_run(folder)
