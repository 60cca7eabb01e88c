"""Numbers about rewards, criteria and hindsight, from the groups of a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from torchmetrics import MeanMetric

from herl.experience import Collection, Group
from herl.metrics.judging import judge_metrics
from herl.types import Judged, Task


def rewards(judged: Iterable[Judged]) -> list[float]:
    """Returns the rewards of those that could be judged."""
    return [one.judgement.reward for one in judged if one.judgement.reward is not None]


def collection_metrics(collection: Collection, policy_version: int = 0) -> dict[str, float]:
    """Returns the numbers of one rollout batch. A mean over nothing is left out, never 0.

    Args:
        collection: The batch.
        policy_version: Optimiser steps that the trainer had taken when the batch was sampled.
    """
    groups = collection.groups
    attempts = [judged for group in groups for judged in group.attempts]
    revisions = [judged for group in groups for judged in group.revisions]
    verdicts = [v for judged in (*attempts, *revisions) for v in judged.judgement.verdicts]
    lists: dict[str, Sequence[float]] = {
        "train/reward": rewards(attempts),
        "train/reward_best": [max(r) for group in groups if (r := rewards(group.attempts))],
        "train/answer_tokens": [len(judged.rollout.token_ids) for judged in attempts],
        "train/truncated": [judged.rollout.finish_reason == "length" for judged in attempts],
        "train/groups_with_signal": [any(group.advantages) for group in groups],
        "train/abstained": [verdict.met is None for verdict in verdicts],
        "hindsight/revised_groups": [bool(group.revisions) for group in groups],
        "hindsight/reward": rewards(revisions),
        "hindsight/gain": [gain for group in groups for gain in _gains(group)],
        "hindsight/accepted": [
            any(member.origin == "hindsight" for member in group.members)
            for group in groups
            if group.revisions
        ],
        "sampler/staleness": [policy_version - judged.rollout.policy_version for judged in attempts],
        "bonus/mean": [m.bonus for group in groups for m in group.members if m.bonus != 0.0],
    }
    means = {name: fmean(values) for name, values in lists.items() if values}
    dropped = {f"train/dropped_{name}": float(n) for name, n in collection.dropped.items() if n}
    return means | dropped | judge_metrics([judged.judgement for judged in (*attempts, *revisions)])


def _gains(group: Group) -> list[float]:
    """Reward of each revision minus that of the attempt it revises."""
    parents = {judged.rollout.id: judged.judgement.reward for judged in group.attempts}
    return [
        revision.judgement.reward - parent
        for revision in group.revisions
        if revision.judgement.reward is not None
        and (parent := parents.get(revision.rollout.parent_id or "")) is not None
    ]


def fulfilled(task: Task, judged: Judged) -> dict[str, bool]:
    """Returns by criterion id whether its author's wish was fulfilled; abstentions are left out."""
    verdicts = {verdict.criterion_id: verdict.met for verdict in judged.judgement.verdicts}
    return {
        criterion.id: criterion.good(met)
        for criterion in task.rubric.criteria
        if (met := verdicts.get(criterion.id)) is not None
    }


class RubricMetrics:
    """Mean reward and share of answers that fulfil each criterion, over one epoch of validation.

    Every rank knows all answers, so nothing is left to be synchronised.

    Args:
        most_criteria: Curves by criterion are kept only while there are at most this many ids.
    """

    def __init__(self, most_criteria: int = 64) -> None:
        self.most_criteria = most_criteria
        self.reward = MeanMetric(sync_on_compute=False)
        self.criteria: dict[str, MeanMetric] = {}
        self.dropped = 0
        """Prompts that were too long to be answered."""

    def update(self, task: Task, judged: Judged) -> None:
        """Adds an answer to a task."""
        if judged.judgement.reward is not None:
            self.reward.update(judged.judgement.reward)
        for criterion_id, good in fulfilled(task, judged).items():
            self.criteria.setdefault(criterion_id, MeanMetric(sync_on_compute=False)).update(float(good))

    def compute(self) -> dict[str, float]:
        """Returns {"heldout/reward": ..., "heldout_criterion/<id>": ...}, without what was not judged."""
        values = {"heldout/reward": float(self.reward.compute())} if self.reward.update_called else {}
        if self.dropped:
            values["heldout/dropped_prompts"] = float(self.dropped)
        if len(self.criteria) <= self.most_criteria:
            for criterion_id, metric in sorted(self.criteria.items()):
                values[f"heldout_criterion/{criterion_id}"] = float(metric.compute())
        return values
