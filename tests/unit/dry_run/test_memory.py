"""What a run says about its memory."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from lightning.fabric.strategies.launchers import subprocess_script

from herl.config.build import build
from herl.dry_run.memory import complaint, killed_ranks, memory_line, memory_of, warn_of_memory
from herl.errors import TrainingError
from herl.update.run_memory import Change, RunMemory
from tests.support.configuration import composed

PARTS = {"activations": 21.8, "moments": 3.7, "weights": 1.84, "logits": 0.1}
FITS = RunMemory(parts=PARTS, free=30.0)
FEWER = Change(override="module.micro_batch_tokens=4096", gib=20.1)
LORA = Change(override="lora=lora", gib=20.4)


def test_a_run_that_fits_gets_one_line(caplog):
    assert memory_line(FITS) == "about 27.4 GiB of 30.0 free"
    warn_of_memory(FITS)
    warn_of_memory(None)
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "together", "said"),
    [
        ((FEWER, LORA), False, ["Lower it: module.micro_batch_tokens=4096 (20.1) or lora=lora (20.4)"]),
        ((FEWER, LORA), True, ["Lower it: module.micro_batch_tokens=4096 (20.1), then lora=lora (20.4)"]),
        ((), False, []),
    ],
)
def test_a_run_that_does_not_fit_says_what_is_large_and_what_to_lower(caplog, changes, together, said):
    memory = RunMemory(parts=PARTS, free=22.3, changes=changes, together=together)
    warn_of_memory(memory)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().splitlines() == [
        "This run needs about 27.4 GiB of memory and 22.3 are free: it may be killed.",
        "The largest parts: activations 21.8, moments 3.7, weights 1.8",
        *said,
    ]


def test_lines_fit_the_screen():
    changes = tuple(Change(override=f"model.gradient_checkpointing={n}", gib=111.1) for n in range(5))
    memory = RunMemory(parts=dict.fromkeys(("a" * 30, "b" * 30), 1111.1), free=222.2, changes=changes)
    assert all(len(line) <= 80 for line in complaint(memory))


@pytest.fixture
def killed():
    """A process that the system has killed."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    process.kill()
    process.wait()
    yield process
    process.stdin.close()


def run_of(*processes):
    launcher = SimpleNamespace(procs=processes)
    return SimpleNamespace(trainer=SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))


WORDS = "the system killed a process of this run, probably for lack of memory: it needs about 27.4 GiB"


def test_the_error_of_a_run_names_a_killed_process(killed):
    with pytest.raises(TrainingError, match=WORDS), killed_ranks(run_of(killed), FITS):
        raise RuntimeError("Connection closed by peer")


def test_other_errors_stay_what_they_are(killed):
    with pytest.raises(RuntimeError, match="a shape"), killed_ranks(run_of(), FITS):
        raise RuntimeError("a shape")
    with pytest.raises(KeyError), killed_ranks(run_of(killed), FITS):
        raise KeyError("x")


def test_it_is_said_too_before_lightning_ends_the_other_processes(killed, monkeypatch, caplog):
    monkeypatch.setattr(os, "kill", lambda *_: None)
    with killed_ranks(run_of(killed), FITS):
        subprocess_script._ChildProcessObserver(main_pid=0, child_processes=[killed])._run()
    assert [record.getMessage() for record in caplog.records if WORDS in record.getMessage()]


def test_the_memory_is_known_before_a_model_is_loaded(tmp_path):
    run = build(composed("fit", output_dir=str(tmp_path)))
    trained, measured = memory_of(run), memory_of(run, trains=False)
    assert run.module.policy is None
    assert 0.0 < measured.total < trained.total < 1.0 < trained.free
    on_cuda = mock.patch.object(type(run.trainer.strategy), "root_device", torch.device("cuda"))
    with on_cuda, mock.patch("torch.cuda.mem_get_info", return_value=(2**31, 2**32)):
        on_a_card = memory_of(run)
    assert on_a_card.free == 2.0
    assert on_a_card.total > on_a_card.parts["reserve"] > 1.0
