"""The numbers of a benchmark as its authors compute them, under their names. Chosen by `benchmark.scores`.

`herl.evaluation.intervals` reports every evaluation in the same way; these are for comparison with numbers
that others have published. They are about plain answers: revisions are no part of a benchmark.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from herl.judge.aggregation import healthbench
from herl.metrics.rubric import Pair
from herl.types import Rubric, Verdict

RESAMPLES = 1000
"""Bootstrap resamples behind a standard error."""


class PublishedScores(Protocol):
    """Tasks with judged answers -> numbers by name."""

    def __call__(self, pairs: Iterable[Pair]) -> dict[str, float]: ...


def healthbench_scores(pairs: Iterable[Pair], seed: int = 0) -> dict[str, float]:
    """Returns HealthBench's numbers: `overall_score`, and one by each tag of the prompts and of the criteria.

    An answer's score by a tag of its prompt (a theme) is its overall score, and that by a tag of criteria (an
    axis) the score of these criteria alone. Each number is the mean over answers, clipped to [0, 1]. With it
    come `NAME:n_samples`, the answers behind it, and `NAME:bootstrap_std`, the standard deviation of the
    clipped mean over 1000 resamples. Criteria that abstained are left out, and so are answers without any
    verdict. Source: arXiv:2505.08775; `grade_sample` and `_compute_clipped_stats` in healthbench_eval.py of
    openai/simple-evals, whose resamples have no seed.

    Args:
        pairs: Tasks of `herl.data.healthbench` with their judged answers, repeated attempts included.
        seed: Seed of the resampling.
    """
    values: defaultdict[str, list[float]] = defaultdict(list)
    for task, judged in pairs:
        verdicts = judged.judgement.verdicts
        overall = healthbench(task.rubric, verdicts)
        if overall is None:
            continue
        scores = {"overall_score": overall} | dict.fromkeys(task.meta["example_tags"], overall)
        values_of_tags = _by_criterion_tag(task.rubric, task.meta["rubric_tags"], verdicts)
        for name, score in (scores | values_of_tags).items():
            values[name].append(score)
    rng = np.random.default_rng(seed)
    result: dict[str, float] = {}
    for name, found in values.items():
        each = np.array(found)
        means = rng.choice(each, (RESAMPLES, len(each))).mean(1)
        result[name] = float(np.clip(each.mean(), 0, 1))
        result[f"{name}:n_samples"] = len(found)
        result[f"{name}:bootstrap_std"] = float(np.clip(means, 0, 1).std())
    return result


def _by_criterion_tag(
    rubric: Rubric, tags: dict[str, list[str]], verdicts: Sequence[Verdict]
) -> dict[str, float]:
    """The score of the criteria with each tag; a tag without positive points has none."""
    scores: dict[str, float] = {}
    for tag in dict.fromkeys(tag for criterion in rubric.criteria for tag in tags.get(criterion.id, ())):
        part = Rubric(criteria=tuple(c for c in rubric.criteria if tag in tags.get(c.id, ())))
        score = healthbench(part, verdicts)
        if score is not None:
            scores[tag] = score
    return scores
