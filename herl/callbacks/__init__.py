"""Lightning callbacks: what happens around the steps. Selected by `callbacks` in the configuration."""

from herl.callbacks.answer_budget import AnswerBudget
from herl.callbacks.refresh_sampler import RefreshSampler

__all__ = ["AnswerBudget", "RefreshSampler"]
