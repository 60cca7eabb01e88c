"""Metrics of answers and their rubrics: reward, criteria, categories, sources, length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torchmetrics import MeanMetric

from herl.types import Judged, Task

Pair = tuple[Task, Judged]
QUOTE = 5
"""Words in a row of a criterion that few answers have by chance. Without spaces between words, characters
count, and more answers do."""


def rewards(judged: Iterable[Judged]) -> list[float]:
    """Returns the rewards of the answers that could be judged."""
    return [one.judgement.reward for one in judged if one.judgement.reward is not None]


def fulfilled(task: Task, judged: Judged) -> dict[str, bool]:
    """Returns, by criterion id, whether the criterion was fulfilled; abstentions are left out."""
    verdicts = {verdict.criterion_id: verdict.met for verdict in judged.judgement.verdicts}
    return {
        criterion.id: criterion.good(met)
        for criterion in task.rubric.criteria
        if (met := verdicts.get(criterion.id)) is not None
    }


def is_perfect(task: Task, judged: Judged) -> bool:
    """Whether every criterion of the rubric is known to be fulfilled."""
    return bool(task.rubric.criteria) and sum(fulfilled(task, judged).values()) == len(task.rubric.criteria)


class RubricMetrics:
    """Means over answers: reward, also by source; share of criteria met, also by criterion and by category.

    Each metric is a torchmetrics mean with a sum and a count as its state. Every rank has all answers of a
    batch, so all ranks compute the same means without synchronization.

    Args:
        family: Prefix of the names: "train", "revision" or "heldout".
        max_criteria: Curves by criterion are left out if there are more criterion ids than this, and those by
            source if there are more sources.
    """

    def __init__(self, family: str, max_criteria: int = 64) -> None:
        self.family = family
        self.max_criteria = max_criteria
        self._means: dict[str, MeanMetric] = {}

    def update(self, pairs: Iterable[Pair]) -> None:
        """Adds answers with their tasks."""
        for name, values in self._values(pairs).items():
            if name not in self._means:
                self._means[name] = MeanMetric(sync_on_compute=False)
                self._means[name].set_dtype(torch.float64)  # float32 sums drift after a few thousand answers
            self._means[name].update(torch.tensor(values, dtype=torch.float64))

    def compute(self) -> dict[str, float]:
        """Returns the means by name. A mean over nothing is left out, never reported as 0.

        {"heldout/reward": ..., "heldout_criterion/<id>": ..., "heldout_category/<name>": ...,
        "heldout_source/<name>": ...}
        """
        limited = (f"{self.family}_criterion/", f"{self.family}_source/")
        counts = {prefix: sum(name.startswith(prefix) for name in self._means) for prefix in limited}
        too_many = tuple(prefix for prefix, count in counts.items() if count > self.max_criteria)
        return {
            name: float(mean.compute())
            for name, mean in sorted(self._means.items())
            if not name.startswith(too_many)
        }

    def _values(self, pairs: Iterable[Pair]) -> dict[str, list[float]]:
        lists: defaultdict[str, list[float]] = defaultdict(list)
        for task, judged in pairs:
            lists[f"{self.family}/reward"] += rewards([judged])
            if task.source:
                lists[f"{self.family}_source/{task.source}"] += rewards([judged])
            lists[f"{self.family}/answer_tokens"].append(
                len(judged.rollout.token_ids) - judged.rollout.thinking_tokens
            )
            if judged.rollout.thinking_tokens:
                lists[f"{self.family}/thinking_tokens"].append(judged.rollout.thinking_tokens)
                lists[f"{self.family}/no_answer"].append(not judged.rollout.has_answer)
            lists[f"{self.family}/truncated"].append(judged.rollout.finish_reason == "length")
            if task.rubric.criteria:
                lists[f"{self.family}/quotes"].append(task.quotes(judged.rollout.text, QUOTE))
            for verdict in judged.judgement.verdicts:
                lists[f"{self.family}/abstained"].append(verdict.met is None)
            good = fulfilled(task, judged)
            if good:
                lists[f"{self.family}/criteria_met"].append(sum(good.values()) / len(good))
                lists[f"{self.family}/perfect"].append(is_perfect(task, judged))
            for criterion in task.rubric.criteria:
                if criterion.id in good and criterion.named:
                    lists[f"{self.family}_criterion/{criterion.id}"].append(good[criterion.id])
                if criterion.id in good and criterion.category:
                    lists[f"{self.family}_category/{criterion.category}"].append(good[criterion.id])
        return {name: values for name, values in lists.items() if values}


def rubric_metrics(family: str, pairs: Sequence[Pair]) -> dict[str, float]:
    """Returns the means over these answers only."""
    metrics = RubricMetrics(family)
    metrics.update(pairs)
    return metrics.compute()
