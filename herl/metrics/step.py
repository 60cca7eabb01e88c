"""One training step as a record, which callbacks receive."""

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
    """The results of one batch of prompts. The same on every rank, except for seconds and rates."""

    collection: Collection
    """Prompts with their attempts, revisions and advantages, and the experiences trained on."""
    metrics: Mapping[str, float]
    """All metrics of the step, by curve name."""
    faults: Mapping[str, str]
    """Faults in the update, by answer id."""
    seconds: Mapping[str, float]
    """Wall time by phase, including the refresh before the step; phases that did not run are left out."""


def measured(
    collection: Collection,
    update: Update,
    policy: PreTrainedModel,
    counts: Mapping[str, int],
    *,
    epoch: int,
    seconds: Mapping[str, float],
) -> Step:
    """Returns the record of a step with all its metrics. All ranks must call it.

    Args:
        collection: The step's groups and experiences.
        update: The report of the update.
        policy: The trained model.
        counts: Counts of the run, including this step.
        epoch: Index of the current epoch, from 0.
        seconds: Wall time of the step by phase.
    """
    metrics = {
        **collection_metrics(collection, update.policy_version),
        **update.metrics,
        **progress_metrics(counts, epoch),
        **resource_metrics(policy, collection, seconds),
    }
    return Step(collection=collection, metrics=metrics, faults=update.faults, seconds=seconds)
