"""What a run says at its end reaches its loggers."""

from collections import Counter
from types import SimpleNamespace

from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from herl.cli.summary import STORY, _first_card
from tests.unit.loggers.test_tables import ShowsTables


def run_with(*loggers):
    module = SimpleNamespace(counts=Counter(answers_sampled=64), log_over="answers_sampled")
    return SimpleNamespace(module=module, trainer=SimpleNamespace(loggers=loggers, is_global_zero=True))


def test_the_sentences_of_the_report_are_a_text_in_tensorboard_and_a_table_elsewhere(tmp_path):
    board, other = TensorBoardLogger(tmp_path, name=""), ShowsTables()
    _first_card(run_with(board, other), ["It learned.\x1b[1m", "It took 2 s."])
    assert other.shown == [(STORY, ["what_happened"], [["It learned.␛[1m"], ["It took 2 s."]], 64)]
    events = EventAccumulator(board.log_dir).Reload()
    [event] = events.Tensors(f"{STORY}/text_summary")
    assert event.step == 64
    assert event.tensor_proto.string_val[0].startswith(b"**It learned")


def test_a_run_without_a_report_says_nothing(tmp_path):
    board, other = TensorBoardLogger(tmp_path, name=""), ShowsTables()
    _first_card(run_with(board, other), [])
    assert not other.shown
    assert not list(tmp_path.iterdir())
