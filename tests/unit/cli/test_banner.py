"""The lines at the start of a run."""

from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
from rich.cells import cell_len

from herl.callbacks.answer_budget import AnswerBudget
from herl.cli.banner import _budget, banner, rounded
from herl.data import RubricDataModule
from herl.models.pretrained import PretrainedModel
from herl.report.commands import curves, from_here
from herl.testing import make_task


def test_lines_fit_the_screen_and_keep_the_end_of_a_long_value():
    lines = banner({"model": "/very/long" * 20 + "/mine", "judge": "", "data": "\u6f22" * 90, "seed": "1"})
    assert [line.split()[0] for line in lines] == ["model", "data", "seed"]
    assert all(cell_len(line) <= 80 for line in lines)
    assert lines[0].startswith("model  ...")
    assert lines[0].endswith("/mine")


def test_a_folder_and_a_command_are_whole_however_long(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(f"runs/2026-01-31_12-00-00_{'my_rows_' * 12}")
    lines = banner({"folder": from_here(folder), "curves": curves(folder)})
    assert lines == [f"folder  {folder}", f"curves  tensorboard --logdir {folder}"]
    assert from_here(tmp_path / "my run") == "'my run'"
    assert from_here(Path("/elsewhere/run")) == "/elsewhere/run"


@pytest.mark.parametrize(
    ("number", "said"), [(12, "12"), (430_752, "431k"), (134_515_008, "135M"), (7.6e9, "7.6B")]
)
def test_sizes_have_three_digits(number, said):
    assert rounded(number) == said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "1 epoch of 6 batches, up to 12 optimizer steps"),
        ({"max_epochs": 20}, "20 epochs of 6 batches, up to 240 optimizer steps"),
        ({"limit_train_batches": 1}, "1 epoch of 1 batch, up to 2 optimizer steps"),
        ({"limit_train_batches": 0.5}, "1 epoch of 3 batches, up to 6 optimizer steps"),
        ({"max_steps": 5}, "1 epoch of 6 batches, 5 optimizer steps"),
        ({"overfit_batches": 1}, "1 epoch"),
        ({"max_epochs": -1, "max_steps": 5}, "5 optimizer steps"),
        ({"callbacks": [AnswerBudget(answers=64)]}, "1 epoch of 6 batches, at most 64 sampled answers"),
    ],
)
def test_the_budget_says_how_many_steps_an_epoch_has(settings, said):
    trainer = L.Trainer(**{"max_epochs": 1, "accelerator": "cpu", "logger": False} | settings)
    data = RubricDataModule([make_task(id=str(i)) for i in range(90)], prompts_per_batch=16)
    module = SimpleNamespace(updater=SimpleNamespace(updates_per_batch=2))
    assert ", ".join(_budget(SimpleNamespace(trainer=trainer, data=data, module=module))) == said


def test_parameters_are_counted_without_loading_them():
    assert PretrainedModel(path="tiny").parameters() == 430_752
