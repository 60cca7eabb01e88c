"""Lightning callbacks: what happens around the steps. Selected by `callbacks` in the configuration."""

from herl.callbacks.alarms import Alarms
from herl.callbacks.answer_budget import AnswerBudget
from herl.callbacks.best_checkpoint import BestCheckpoint
from herl.callbacks.checkpoints import Checkpoints
from herl.callbacks.dashboard import Dashboard
from herl.callbacks.hindsight_gate import HindsightGate
from herl.callbacks.progress_bar import ProgressBar
from herl.callbacks.record_answers import RecordAnswers
from herl.callbacks.refresh_sampler import RefreshSampler
from herl.callbacks.stop_on_signal import StopOnSignal

__all__ = [
    "Alarms",
    "AnswerBudget",
    "BestCheckpoint",
    "Checkpoints",
    "Dashboard",
    "HindsightGate",
    "ProgressBar",
    "RecordAnswers",
    "RefreshSampler",
    "StopOnSignal",
]
