"""The results of an evaluation: means with confidence intervals, overall, by criterion and by category."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from statistics import fmean
from typing import Any

import numpy as np

from herl.metrics.rubric import Pair, fulfilled, is_perfect

RESAMPLES = 2000
MAX_NAMED = 64
"""Most rows by criterion, category or source: each costs memory and time for all prompts."""
MAX_PROMPT_REWARDS = 4096
"""Most prompts whose rewards a summary lists; means over more are precise enough without pairing."""
OVERALL = ("reward", "clipped_reward", "perfect", "criteria_met", "abstained")
"""Rows over all criteria. `perfect` is a benchmark's prompt-level accuracy, `criteria_met` is the
instruction-level one. `clipped_reward` is the mean reward clipped to [0, 1], which is HealthBench's score
(arXiv:2505.08775); it is there only if some reward is outside, since it is the mean reward otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One result of an evaluation."""

    name: str
    """One of `OVERALL`, "criterion/<id>", "category/<name>" or "source/<name>" (its mean reward)."""
    mean: float
    low: float
    """Lower end of the 95 % confidence interval, by bootstrap over prompts; `high` is the upper end."""
    high: float
    count: int
    """Number of answers or verdicts averaged."""
    revisions: int = 0
    """Maximum number of revisions of each answer."""
    judge: str = ""
    """Name of a further judge; "" for the judge that guided the revisions."""


def evaluation_rows(
    pairs: Iterable[Pair], *, revisions: int = 0, judge: str = "", seed: int = 0
) -> list[Row]:
    """Returns the results for these answers. A mean over nothing is left out. If there are more than
    `MAX_NAMED` criteria, those have rows that most prompts have, of those that several prompts have; the same
    holds for categories and for sources.

    Args:
        pairs: Each answer with its task. Answers to one prompt are resampled together.
        revisions: `Row.revisions` of the rows.
        judge: `Row.judge` of the rows.
        seed: Seed of the resampling.
    """
    # name -> prompt -> (sum, count)
    table: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(
        lambda: defaultdict(lambda: [0.0, 0.0])
    )
    prompts: dict[str, int] = {}
    any_outside = False
    for task, judged in pairs:
        prompts.setdefault(task.id, len(prompts))
        for name, value in _values((task, judged)):
            table[name][task.id][0] += value
            table[name][task.id][1] += 1
            any_outside |= name == "reward" and not 0.0 <= value <= 1.0
    if not prompts:
        return []
    names = [name for name in OVERALL if name in table]
    names += sorted(_named(table))
    sums, counts = np.zeros((2, len(prompts), len(names)))
    for column, name in enumerate(names):
        for task_id, (total, count) in table[name].items():
            sums[prompts[task_id], column], counts[prompts[task_id], column] = total, count
    low, high = _intervals(sums, counts, seed)
    rows = [
        Row(
            name=name,
            mean=float(sums[:, i].sum() / counts[:, i].sum()),
            low=float(low[i]),
            high=float(high[i]),
            count=int(counts[:, i].sum()),
            revisions=revisions,
            judge=judge,
        )
        for i, name in enumerate(names)
    ]
    if any_outside:
        mean = next(row for row in rows if row.name == "reward")
        rows.insert(rows.index(mean) + 1, _clipped(mean))
    return rows


def _named(table: Mapping[str, Collection[str]]) -> Iterator[str]:
    """The names of criteria, categories and sources that have rows, from the prompts that have each name."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for name in table:
        if name not in OVERALL:
            kinds[name.partition("/")[0]].append(name)
    for names in kinds.values():
        if len(names) > MAX_NAMED:
            names = [name for name in names if len(table[name]) > 1]
            names = sorted(names, key=lambda name: (-len(table[name]), name))[:MAX_NAMED]
        yield from names


def prompt_rewards(pairs: Iterable[Pair]) -> dict[str, Any]:
    """Returns a fingerprint of the prompts with their rubrics, and the mean reward by prompt: what a paired
    comparison needs. A reward by another rubric is another quantity.

    Args:
        pairs: Each answer with its task; answers to one prompt count as one.

    Returns:
        {"fingerprint", "rewards": [prompts]}, in the order of the prompts. A reward is None where nothing was
        judged; "rewards" is left out above `MAX_PROMPT_REWARDS` prompts.
    """
    earned: dict[tuple[object, ...], list[float]] = {}
    for task, judged in pairs:
        rubric = tuple((one.id, one.text, one.weight, one.undesirable) for one in task.rubric.criteria)
        found = earned.setdefault((task.id, task.request, rubric), [])
        if judged.judgement.reward is not None:
            found.append(judged.judgement.reward)
    known = blake2b(repr(list(earned)).encode(), digest_size=8).hexdigest()
    rewards = [round(fmean(found), 6) if found else None for found in earned.values()]
    return {"fingerprint": known} | ({"rewards": rewards} if len(rewards) <= MAX_PROMPT_REWARDS else {})


def _clipped(row: Row) -> Row:
    """A clipped mean and its interval: a percentile of clipped means is the clipped percentile."""
    mean, low, high = (min(1.0, max(0.0, value)) for value in (row.mean, row.low, row.high))
    return replace(row, name="clipped_reward", mean=mean, low=low, high=high)


def _values(pair: Pair) -> Iterator[tuple[str, float]]:
    task, judged = pair
    if judged.judgement.reward is not None:
        yield "reward", judged.judgement.reward
        if task.source:
            yield f"source/{task.source}", judged.judgement.reward
    for verdict in judged.judgement.verdicts:
        yield "abstained", float(verdict.met is None)
    good = fulfilled(task, judged)
    if good:
        yield "perfect", float(is_perfect(task, judged))
    for criterion in task.rubric.criteria:
        if criterion.id in good:
            yield "criteria_met", float(good[criterion.id])
            if criterion.named:
                yield f"criterion/{criterion.id}", float(good[criterion.id])
            if criterion.category:
                yield f"category/{criterion.category}", float(good[criterion.id])


def _intervals(sums: np.ndarray, counts: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns 95 % percentile intervals of sum / count over resampled prompts, [names] each."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means = [(weight @ sums) / (weight @ counts) for weight in resampling_weights(len(sums), seed)]
    low, high = np.nanpercentile(np.concatenate(means), [2.5, 97.5], axis=0)
    return low, high


def resampling_weights(prompts: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each resample of a bootstrap draws each prompt, [resamples at a time, prompts]."""
    rng = np.random.default_rng(seed)
    step = max(1, 4_000_000 // prompts)
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        yield rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=size).astype(np.float64)


def find_row(rows: Sequence[Row], name: str, revisions: int = 0, judge: str = "") -> Row | None:
    """Returns the matching row, or None."""
    for row in rows:
        if (row.name, row.revisions, row.judge) == (name, revisions, judge):
            return row
    return None
