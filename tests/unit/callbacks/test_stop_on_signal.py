"""A signal ends a run wherever it is: in training, and in a measurement before, after or without it."""

import os
import signal

import lightning as L
import pytest

from herl.callbacks import StopOnSignal
from herl.callbacks.base import HerlCallback
from herl.data import RubricDataModule
from herl.errors import RunStopped
from tests.support.training import TASKS, module_of


class SignalsItself(HerlCallback):
    """Sends a signal to this process when a measurement begins, and counts the batches that still come."""

    def __init__(self, number):
        self.number, self.batches = number, 0

    def on_heldout_start(self, trainer, module):
        os.kill(os.getpid(), self.number)

    def on_heldout_batch(self, trainer, module, batch_idx):
        self.batches += 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_measurement_ends_at_once(tmp_path, capfd, number):
    before = signal.getsignal(number)
    sends = SignalsItself(number)
    trainer = L.Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=False,
        enable_checkpointing=False, callbacks=[StopOnSignal(), sends], default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(RunStopped, match=f"stopped by {number.name}"):
        trainer.validate(module_of(), RubricDataModule(TASKS, TASKS, prompts_per_batch=1), verbose=False)
    assert sends.batches == 0 < len(TASKS)
    assert f"herl: {number.name}: the run stops now" in capfd.readouterr().err
    assert signal.getsignal(number) == before
