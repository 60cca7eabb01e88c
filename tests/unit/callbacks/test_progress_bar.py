import io

import lightning as L
import pytest
from rich.cells import cell_len
from rich.console import Console

from herl.callbacks import AnswerBudget, ProgressBar
from herl.callbacks.progress_bar import _columns, _FittedProgress
from herl.clock import PhaseClock
from herl.data import RubricDataModule
from herl.hindsight.revision import RevisionBuilder
from tests.support.training import TASKS, module_of


def watched(tmp_path, console, bar=None, **trainer):
    bar = bar or ProgressBar(seconds_between_lines=0.0)
    bar.console = console
    settings = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False,
        "default_root_dir": tmp_path, "num_sanity_val_steps": 0, "max_epochs": 2,
    }  # fmt: skip
    made = L.Trainer(**(settings | trainer), callbacks=[bar, AnswerBudget(32)])
    made.fit(module_of(hindsight=RevisionBuilder()), RubricDataModule(TASKS, TASKS, prompts_per_batch=2))
    return console.file.getvalue()


def test_without_a_terminal_there_are_plain_lines(tmp_path):
    said = watched(tmp_path, Console(file=io.StringIO(), force_terminal=False, width=300)).splitlines()
    assert said[0].startswith("epoch 1/2, batch 1/1; 50% done,")
    assert "reward: train " in said[0]
    assert said[-1].startswith("epoch 2/2, batch 1/1; 100% done,")
    assert "heldout" in said[-1]
    assert not any("\x1b" in line or "\r" in line for line in said)


def test_what_is_left_of_a_resumed_run_is_judged_by_what_it_has_done_itself():
    bar = ProgressBar(seconds_between_lines=0.0)
    bar.console = Console(file=io.StringIO(), force_terminal=False, width=300)
    bar._open(module_of(), "training", share=0.9)
    bar._started -= 60.0
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    bar._show(trainer, 0.95, "batch 95/100")
    assert "95% done, 60 s left" in bar.console.file.getvalue()


def test_what_is_left_is_judged_since_the_start_and_not_since_the_last_held_out_evaluation(tmp_path):
    class CountsOpenings(ProgressBar):
        opened = 0

        def _open(self, *args, **settings):
            self.opened += 1
            super()._open(*args, **settings)

    bar = CountsOpenings(seconds_between_lines=0.0)
    said = watched(tmp_path, Console(file=io.StringIO(), force_terminal=False, width=300), bar)
    assert "heldout" in said
    assert bar.opened == 1


def test_held_out_prompts_outside_of_training_say_so(tmp_path):
    bar = ProgressBar(seconds_between_lines=0.0)
    bar.console = Console(file=io.StringIO(), force_terminal=False, width=300)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        callbacks=[bar],
    )
    trainer.validate(module_of(), RubricDataModule(TASKS, TASKS, prompts_per_batch=1), verbose=False)
    said = bar.console.file.getvalue().splitlines()
    assert [line[: len("held-out prompts, batch 1/2; 50% done")] for line in said] == [
        "held-out prompts, batch 1/2; 50% done",
        "held-out prompts, batch 2/2; 100% don",
    ]


def test_in_a_terminal_there_is_one_live_line_that_leaves_no_trace(tmp_path):
    shown = watched(tmp_path, Console(file=io.StringIO(), force_terminal=True, width=200))
    assert "epoch 2/2, batch 1/1" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # erased at the end


def test_a_run_is_as_far_as_the_limit_that_it_meets_first(tmp_path):
    shares = []

    class Watching(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            shares.append(module.share_done(trainer.fit_loop.batch_idx + 1))

    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, default_root_dir=tmp_path, limit_val_batches=0, max_epochs=8,
        callbacks=[Watching(), AnswerBudget(24)],
    )  # fmt: skip
    trainer.fit(module_of(), RubricDataModule(TASKS, prompts_per_batch=2))
    assert shares == pytest.approx([8 / 24, 16 / 24, 1.0])


def test_a_narrow_screen_drops_whole_columns_and_keeps_the_held_out_reward():
    facts = {
        "description": "epoch 10/10, batch 118/120", "speed": "19.4 answers/s", "reward": "heldout 0.660",
        "rewards": "train 0.727, revision 0.873, heldout 0.660",
    }  # fmt: skip
    clock, shown = PhaseClock(), {}
    clock.phase = "refresh"
    for width in (200, 150, 120, 100, 80, 60, 40, 20):
        console = Console(file=io.StringIO(), width=width, force_terminal=False)
        progress = _FittedProgress(_columns(clock), console=console)
        progress.add_task(total=1.0, completed=0.5, **facts)
        console.print(progress.get_renderable())
        shown[width] = console.file.getvalue().removesuffix("\n")
        assert "\n" not in shown[width]
        assert "…" not in shown[width]
        assert cell_len(shown[width]) <= width
        assert "heldout 0.660" in shown[width]
    for word in ("epoch 10/10, batch 118/120", "50 %", "left", "refreshing 0 s"):
        assert word in shown[80]
    assert "train 0.727" in shown[120]
    assert "answers/s" in shown[150]
    assert "━" in shown[200]
