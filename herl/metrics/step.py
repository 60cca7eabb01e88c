"""One training step as a record: what callbacks get to see of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from herl.metrics.collection import collection_metrics, progress_metrics
from herl.metrics.throughput import resource_metrics
from herl.rollout.collect import Collection
from herl.update.updater import Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What happened to one batch of prompts. The same on every rank, but for seconds and rates."""

    collection: Collection
    """Prompts with their attempts, revisions and advantages, and what was trained on."""
    metrics: Mapping[str, float]
    """All that the step reported, by the names of the curves."""
    faults: Mapping[str, str]
    """What was wrong in the update, by the id of the answer."""
    seconds: Mapping[str, float]
    """Wall time by phase, the refresh before the step included; phases that took none are left out."""


def measured(
    collection: Collection,
    update: Update,
    policy: PreTrainedModel,
    counts: Mapping[str, int],
    *,
    epoch: int,
    seconds: Mapping[str, float],
) -> Step:
    """Returns the record of a step with all its numbers. All ranks must call it.

    Args:
        collection: What was sampled.
        update: What the update reports.
        policy: What was trained.
        counts: Of the run, with this step.
        epoch: The present one, from 0.
        seconds: Wall time of the step by phase.
    """
    metrics = {
        **collection_metrics(collection, update.policy_version),
        **update.metrics,
        **progress_metrics(counts, epoch),
        **resource_metrics(policy, collection, seconds),
    }
    return Step(collection=collection, metrics=metrics, faults=update.faults, seconds=seconds)
