"""A run that was killed or stopped resumes as if nothing had happened."""

import json
import os
import signal
import threading
from functools import partial

import lightning as L
import pytest
import torch

from herl.callbacks import Checkpoints, HerlCallback, RecordAnswers, RefreshSampler, StopOnSignal
from herl.data import RubricDataModule
from herl.data.sources import read_tasks
from herl.errors import ConfigError, DataError, RunStopped, TrainingError
from herl.hindsight.revision import RevisionBuilder
from herl.replay import ReplayBuffer
from herl.sampler.scripted import ScriptedSampler
from herl.selection import form_group
from herl.testing import make_task
from tests.support.training import module_of, weights

pytestmark = pytest.mark.integration  # each trains, dies and resumes
TASKS = [make_task(id=f"t{i}", request=f"Describe animal {i}.") for i in range(6)]
ANSWERS = {
    task.id: ["It eats fish.", "It is brown.", f"Number {i} river.", "no"] for i, task in enumerate(TASKS)
}


class DieAt(L.Callback):
    """Fails like a killed process: everything not yet written is lost."""

    def __init__(self, batch, hook):
        self.batch, self.hook = batch, hook

    def _die(self, module):
        if module.counts["batches"] == self.batch:
            raise RuntimeError("killed")

    def on_train_batch_start(self, trainer, module, *_):
        if self.hook == "batch":
            self._die(module)

    def on_validation_start(self, trainer, module):
        if self.hook == "validation" and trainer.state.fn == "fit":
            self._die(module)

    def on_train_epoch_end(self, trainer, module):
        if self.hook == "epoch":
            self._die(module)


class Seen(HerlCallback):
    def __init__(self):
        self.rewards, self.heldout = {}, {}

    def on_step(self, trainer, module, step):
        self.rewards[module.counts["batches"]] = step.metrics["update/loss"]

    def on_heldout(self, trainer, module, trajectories):
        self.heldout[module.counts["batches"]] = [one.reward() for one in trajectories]


def run(folder, *callbacks, resume=None, every=1, keep=2, tasks=TASKS, seen=None, **changes):
    texts = {task.id: ANSWERS.get(task.id, ["fish", "no"]) for task in tasks}
    module = module_of(
        sampler=ScriptedSampler(texts, {task.id: ["fish river"] for task in tasks}),
        hindsight=RevisionBuilder(),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        **changes,
    )
    seen = seen or Seen()
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=folder, val_check_interval=2, check_val_every_n_epoch=None,
        callbacks=[
            RefreshSampler(), RecordAnswers(str(folder / "records")), seen, *callbacks,
            Checkpoints(str(folder / "c"), every_n_batches=every, every_n_minutes=None, keep=keep),
        ],
    )  # fmt: skip
    data = RubricDataModule(tasks, TASKS[:2], prompts_per_batch=2)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module, seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return *run(folder), folder


PLACES = [*((n, "batch") for n in range(1, 6)), (2, "validation"), (4, "validation"), (3, "epoch")]


@pytest.mark.parametrize(("batch", "hook"), PLACES)
@pytest.mark.parametrize("every", [1, 2])
def test_a_run_that_dies_anywhere_goes_on_with_the_same_numbers(tmp_path, whole, hook, batch, every):
    module, expected, folder = whole
    first = Seen()
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, DieAt(batch, hook), every=every, seen=first)
    newest = tmp_path / "c" / "last.ckpt"
    again, rest = run(tmp_path, resume=str(newest) if newest.exists() else None)
    assert torch.equal(weights(again), weights(module))
    assert dict(again.counts) == dict(module.counts)
    assert first.rewards | rest.rewards == expected.rewards
    assert {**first.heldout, **rest.heldout} == expected.heldout
    assert recorded(tmp_path) == recorded(folder)


@pytest.mark.parametrize("batch", [2, 4])
def test_a_memory_goes_on_with_what_it_kept(tmp_path, whole, batch):
    def both():  # a new revision and a replayed one may join
        return {"replay": ReplayBuffer(), "selection": partial(form_group, top_n=2)}

    module, expected = run(tmp_path / "whole", **both())
    assert not torch.equal(weights(module), weights(whole[0])), "the memory is used"
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, DieAt(batch, "batch"), **both())
    again, rest = run(tmp_path, resume=str(tmp_path / "c" / "last.ckpt"), **both())
    assert torch.equal(weights(again), weights(module))
    assert rest.rewards.items() <= expected.rewards.items()
    assert again.stages.replay.state_dict() == module.stages.replay.state_dict()


def recorded(folder):
    lines = [
        json.loads(line) for line in (folder / "records" / "answers-00000.jsonl").read_text().splitlines()
    ]
    return [(line["id"], line["reward"], line["optimizer_steps"]) for line in lines]


def test_the_newest_are_kept_and_the_link_points_to_the_last(tmp_path):
    run(tmp_path, keep=2)
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == ["batch-00000005.ckpt", "batch-00000006-epoch.ckpt", "last.ckpt"]
    assert (tmp_path / "c" / "last.ckpt").resolve().name == "batch-00000006-epoch.ckpt"
    assert os.readlink(tmp_path / "c" / "last.ckpt") == "batch-00000006-epoch.ckpt"  # the folder may be moved


def test_what_a_killed_run_left_unfinished_is_removed_and_does_not_count(tmp_path):
    (tmp_path / "c" / "batch-00000009.ckpt.part").mkdir(parents=True)
    (tmp_path / "c" / "batch-00000008.ckpt.part").write_bytes(b"half of it")
    run(tmp_path, keep=2)
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == ["batch-00000005.ckpt", "batch-00000006-epoch.ckpt", "last.ckpt"]


def test_a_full_disk_is_a_clear_error_and_the_checkpoint_before_stays(tmp_path, monkeypatch, whole):
    real = L.Trainer.save_checkpoint

    def full(self, path, *args, **kwargs):
        if "00000003" in str(path):
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", full)
    with pytest.raises(TrainingError, match="cannot write the checkpoint .*No space left on device.*resume="):
        run(tmp_path)
    monkeypatch.undo()
    newest = tmp_path / "c" / "last.ckpt"
    assert newest.resolve().name == "batch-00000002.ckpt"
    again, _ = run(tmp_path, resume=str(newest))
    assert torch.equal(weights(again), weights(whole[0]))


class NoFolder(L.Callback):
    """Makes a folder read-only from some batch on."""

    def __init__(self, folder, batch):
        self.folder, self.batch = folder, batch

    def on_train_batch_start(self, trainer, module, *_):
        if module.counts["batches"] == self.batch:
            self.folder.rename(f"{self.folder}-kept")
            self.folder.write_text("not a folder")


def test_answers_that_cannot_be_recorded_end_the_run_and_come_again_when_it_goes_on(tmp_path, whole):
    records = tmp_path / "records"
    with pytest.raises(TrainingError, match=r"cannot record answers in .*answers-00000.jsonl.*and resume"):
        run(tmp_path, NoFolder(records, 2))
    records.unlink()
    (tmp_path / "records-kept").rename(records)
    again, _ = run(tmp_path, resume=str(tmp_path / "c" / "last.ckpt"))
    assert torch.equal(weights(again), weights(whole[0]))
    assert recorded(tmp_path) == recorded(whole[2])


def test_no_judge_thread_is_left_when_a_run_ends_with_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, DieAt(1, "batch"))
    assert not [thread for thread in threading.enumerate() if thread.name == "judge"]


class Send(L.Callback):
    """Sends a signal in the middle of a batch."""

    def __init__(self, batch, number, times=1):
        self.batch, self.number, self.times = batch, number, times

    def on_train_batch_end(self, trainer, module, *_):
        if module.counts["batches"] == self.batch:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_between_batches_and_nothing_is_lost(tmp_path, whole, number):
    handler = signal.getsignal(number)
    with pytest.raises(RunStopped, match=f"stopped by {signal.Signals(number).name}"):
        run(tmp_path, Send(2, number), StopOnSignal(), every=None)
    assert signal.getsignal(number) == handler
    newest = tmp_path / "c" / "last.ckpt"
    assert newest.resolve().name == "batch-00000002-stopped.ckpt"
    again, _ = run(tmp_path, resume=str(newest))
    assert torch.equal(weights(again), weights(whole[0]))


def test_a_second_ctrl_c_ends_the_process(tmp_path, capfd):
    with pytest.raises(SystemExit):
        run(tmp_path, Send(2, signal.SIGINT, times=2), StopOnSignal(), every=None)
    message = "herl: SIGINT: the run stops before the next batch (press again to stop at once)\n"
    assert message in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN or signal.signal(
        signal.SIGINT, signal.default_int_handler
    )


def test_other_training_prompts_are_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(DataError, match="expected the training prompts that the run began with"):
        run(tmp_path, resume=str(tmp_path / "c" / "last.ckpt"), tasks=TASKS[:5])


class Change(L.Callback):
    """Overwrites a file during a batch."""

    def __init__(self, path, text, batch):
        self.path, self.text, self.batch = path, text, batch

    def on_train_batch_end(self, trainer, module, *_):
        if module.counts["batches"] == self.batch:
            self.path.write_text(self.text)


def test_a_data_file_that_changes_ends_the_run_with_a_checkpoint_and_goes_on_when_it_is_back(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("herl.data.rows.LARGE_BYTES", 0)
    path = tmp_path / "rows.jsonl"
    rubric = [{"text": "Names it.", "check": {"kind": "contains", "text": "fish"}}]
    rows = [{"id": one.id, "prompt": one.request, "rubric": rubric} for one in TASKS]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    expected, _ = run(tmp_path / "whole", tasks=read_tasks(path))
    with pytest.raises(DataError, match="rows.jsonl: expected the file that the run began with"):
        run(tmp_path, Change(path, text[:50], 2), tasks=read_tasks(path), every=None)
    newest = tmp_path / "c" / "last.ckpt"
    assert newest.resolve().name == "batch-00000002-stopped.ckpt"
    path.write_text(text.replace("animal 3", "another"))
    with pytest.raises(DataError, match="expected the training prompts that the run began with"):
        run(tmp_path, resume=newest, tasks=read_tasks(path))
    path.write_text(text)
    again, _ = run(tmp_path, resume=newest, tasks=read_tasks(path))
    assert torch.equal(weights(again), weights(expected))


def test_another_chat_template_is_refused_and_the_checkpoint_stays(tmp_path, monkeypatch):
    run(tmp_path)
    newest = tmp_path / "c" / "last.ckpt"
    before = newest.resolve()
    from herl.models.pretrained import PretrainedModel

    real = PretrainedModel.tokenizer

    def other(self):
        tokenizer = real(self)
        tokenizer.chat_template = "Now: " + tokenizer.chat_template
        return tokenizer

    monkeypatch.setattr(PretrainedModel, "tokenizer", other)
    with pytest.raises(
        ConfigError, match="expected the checkpoint's tokenizer and chat template, got different ones"
    ):
        run(tmp_path, resume=newest)
    assert newest.resolve() == before  # nothing was saved in its place
    assert len(list((tmp_path / "c").iterdir())) == 3


def test_the_oldest_checkpoint_goes_first_whatever_its_batch(tmp_path):
    """A run that goes on from an earlier checkpoint leaves those of later batches behind."""
    for age, batch in enumerate((9, 3, 4)):
        path = tmp_path / f"batch-{batch:08d}.ckpt"
        path.touch()
        os.utime(path, ns=(age, age))
    Checkpoints(str(tmp_path), keep=2)._forget_old(tmp_path / "batch-00000004.ckpt")
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["batch-00000003", "batch-00000004"]
