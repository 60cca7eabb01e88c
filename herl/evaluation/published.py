"""The numbers of a benchmark as its authors compute them, under their names. Chosen by `benchmark.scores`.

`herl.evaluation.intervals` reports every evaluation in the same way; these are for comparison with numbers
that others have published. They are about plain answers: revisions are no part of a benchmark.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Protocol

import numpy as np

from herl.judge.aggregation import healthbench
from herl.metrics.rubric import Pair
from herl.types import Rubric, Verdict

MULDIMIF_TYPES = {
    "Citations": "Content_Identifiers", "Json": "Format_Json", "Markdown": "Format_Markdown",
    "Paragraphs": "Length_Paragraphs", "Punctuation": "Content_Punctuation",
    "References": "Content_Identifiers", "Sentences": "Length_Sentences", "Table": "Format_Table",
    "Words": "Length_Words", "XML": "Format_XML",
    "Content_Length": "Length_Words", "Content_Mention": "Content_Keywords",
    "Content_Quotes": "Content_Punctuation", "Content_Sources": "Content_Identifiers",
    "Format_Blurb": "Length_Words", "Format_Bullet Points": "Content_Identifiers",
    "Format_Length": "Length_Words", "Format_Text": "Content_Identifiers",
    "Format_Word Count": "Length_Words",
}  # fmt: skip
"""MulDimIF's rows name their constraints in several ways: a category, or a category and what it is about ->
the type that its numbers name. Others are as written, without what follows a colon."""
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


def muldimif_scores(pairs: Iterable[Pair]) -> dict[str, float]:
    """Returns MulDimIF's numbers: accuracies overall, by constraint pattern, by type and by difficulty.

    `total_acc` is the share of answers that fulfill all constraints, `total_acc_macro` the mean over answers
    of the share that they fulfill, and `total_acc_micro` the share of all constraints that are fulfilled. The
    same three are given for each pattern (`constraint_extension_list`) and difficulty. For a type, an answer
    counts if it fulfills all constraints of that type; for a type's second level each constraint does.
    Abstentions are left out, and an answer with one does not fulfill all. Source: arXiv:2505.07591;
    `get_score` in evaluation.py of Junjie-Ye/MulDimIF, which leaves out numbers that are 0.

    Args:
        pairs: Tasks of `herl.data.prompts.muldimif` with their judged answers.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    for task, judged in pairs:
        good = task.rubric.fulfilled(judged.judgement.verdicts)
        if not good:
            continue
        every = len(good) == len(task.rubric.criteria)
        for name, of in (
            ("total_acc", ""),
            ("constraint_extension_list", f"/{task.meta['constraint_pattern']}"),
            ("constraint_difficulty_list", f"/{task.meta['difficulty']}"),
        ):
            found[f"{name}{of}"].append(float(every and all(good.values())))
            found[f"{name}_macro{of}"].append(sum(good.values()) / len(good))
            found[f"{name}_micro{of}"] += map(float, good.values())
        types: defaultdict[str, list[bool]] = defaultdict(list)
        for criterion in task.rubric.criteria:
            if criterion.id in good:
                kind = _muldimif_type(criterion.category, criterion.title)
                types[kind.partition("_")[0]].append(good[criterion.id])
                found[f"constraint_type_second_list/{kind}"].append(float(good[criterion.id]))
        for kind, fulfilled in types.items():
            found[f"constraint_type_list/{kind}"].append(float(all(fulfilled)))
    return {name: fmean(found[name]) for name in sorted(found, key=_overall_first)}


def _muldimif_type(category: str, title: str) -> str:
    name = f"{category}_{title.partition(':')[0]}"
    return MULDIMIF_TYPES.get(category, MULDIMIF_TYPES.get(name, name))


def _overall_first(name: str) -> tuple[bool, str]:
    return not name.startswith("total_acc"), name
