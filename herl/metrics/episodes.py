"""Metrics of episodes: answers of a run whose environment may reply."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from herl.types import FinishReason, Rollout

ENDS: dict[str, FinishReason] = {
    "failed": "failed",
    "cut_by_turns": "turns",
    "cut_by_length": "length",
    "cut_by_seconds": "seconds",
}
"""How an episode may end other than by itself, by the metric that counts it."""


def episode_metrics(answers: Sequence[Rollout]) -> dict[str, float]:
    """Returns the metrics of answers in one turn or more. A mean over nothing is left out, never 0.

    `turns`, `calls` and `reply_tokens` are means over answers, `failed_calls` is a share of calls, and
    `failed` and `cut_by_...` are shares of answers.
    """
    if not answers:
        return {}
    turns = [turn for answer in answers for turn in answer.turns]
    calls = [call for turn in turns for call in turn.calls]
    found = {
        "turns": 1 + len(turns) / len(answers),
        "calls": len(calls) / len(answers),
        "reply_tokens": sum(len(turn.reply_ids) for turn in turns) / len(answers),
    }
    if calls:
        found["failed_calls"] = fmean(bool(call.error) for call in calls)
    return found | {
        name: fmean(answer.finish_reason == reason for answer in answers) for name, reason in ENDS.items()
    }
