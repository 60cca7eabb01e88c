"""User-written callbacks, and those of herl."""

import dataclasses
import inspect

import lightning as L
import pytest

import herl.callbacks
from herl.callbacks import HerlCallback, KeepHeldout, RefreshSampler
from herl.data import RubricDataModule
from herl.errors import ConfigError
from herl.evaluation.intervals import prompt_rewards
from herl.hindsight.revision import RevisionBuilder
from herl.module import HerlModule
from herl.sampler.scripted import ScriptedSampler
from herl.testing import make_task
from tests.support.training import fit, module_of


class Watch(HerlCallback):
    """A callback as a user may write it."""

    def __init__(self):
        self.seen = []

    def on_start(self, trainer, module):
        self.seen.append("start")

    def on_epoch_start(self, trainer, module):
        self.seen.append("epoch")

    def on_batch_start(self, trainer, module):
        self.seen.append("batch")

    def on_step(self, trainer, module, step):
        self.seen.append(step)

    def on_epoch_end(self, trainer, module):
        self.seen.append("epoch ends")

    def on_heldout_start(self, trainer, module):
        self.seen.append("held-out")

    def on_heldout(self, trainer, module, trajectories):
        self.seen.append(trajectories)

    def on_error(self, trainer, module, error):
        self.seen.append(error)


def trainer_of(tmp_path, *callbacks):
    return L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, enable_checkpointing=False, default_root_dir=tmp_path, callbacks=[*callbacks],
    )  # fmt: skip


def test_a_callback_gets_each_step_and_each_validation_as_a_record(tmp_path):
    watch, kept = Watch(), KeepHeldout()
    trainer = trainer_of(tmp_path, RefreshSampler(), watch, kept)
    tasks = [make_task(id=f"t{number}") for number in range(4)]
    sampler = ScriptedSampler({one.id: ["fish"] for one in tasks}, {one.id: ["fish river"] for one in tasks})
    module = module_of(sampler=sampler, hindsight=RevisionBuilder(), validation_revisions=1)
    trainer.fit(module, RubricDataModule(tasks[:2], tasks, prompts_per_batch=2))
    *before, step, heldout, found, end = watch.seen
    assert before == ["start", "epoch", "batch"]
    assert [len(group.attempts) for group in step.collection.groups] == [4, 4]
    assert step.metrics["progress/answers_sampled"] == module.counts["answers_sampled"]
    assert {"sample", "update", "refresh"} <= set(step.seconds)
    assert step.metrics["time/update"] == step.seconds["update"]
    assert step.faults == {}
    assert (heldout, end) == ("held-out", "epoch ends")
    assert [len(one.answers) for one in found] == [2] * 4, "of both batches"
    assert kept.trajectories == found
    assert kept.validations[-1]["heldout"] == prompt_rewards((one.task, one.answers[0]) for one in found)
    assert len(kept.validations[-1]["heldout"]["rewards"]) == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.metrics = {}


def test_a_callback_hears_of_an_error(tmp_path):
    class Fail(Watch):
        def on_step(self, trainer, module, step):
            raise RuntimeError("of my own")

    watch = Fail()
    with pytest.raises(RuntimeError, match="of my own"):
        fit(module_of(), tmp_path, callbacks=[watch])
    assert str(watch.seen[-1]) == "of my own"


def test_all_callbacks_of_herl_derive_from_one_and_only_that_one_knows_lightnings_module():
    for name in herl.callbacks.__all__:
        assert issubclass(getattr(herl.callbacks, name), HerlCallback), name
    assert HerlModule.__name__ in inspect.getsource(herl.callbacks.base._herl)


def test_another_module_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected a HerlModule, got a LightningModule"):
        HerlCallback().on_train_start(None, L.LightningModule())
