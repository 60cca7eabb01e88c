"""Lightning callbacks, which act around the steps. Selected by `callbacks` in the configuration."""

from herl.callbacks.alarms import Alarms
from herl.callbacks.answer_budget import AnswerBudget
from herl.callbacks.base import HerlCallback
from herl.callbacks.best_checkpoint import BestCheckpoint
from herl.callbacks.checkpoints import Checkpoints
from herl.callbacks.dashboard import Dashboard
from herl.callbacks.gold_judges import GoldJudges
from herl.callbacks.keep_heldout import KeepHeldout
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
    "GoldJudges",
    "HerlCallback",
    "KeepHeldout",
    "ProgressBar",
    "RecordAnswers",
    "RefreshSampler",
    "StopOnSignal",
]
