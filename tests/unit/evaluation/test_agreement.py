"""Kappa and alpha are those of a library and of plain loops."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_cohen_kappa

from herl.evaluation.agreement import (
    alpha_row,
    by_prompt,
    cohen_kappa,
    disagreement,
    estimate,
    krippendorff_alpha,
    pair_row,
    ratio,
)
from herl.evaluation.intervals import evaluation_rows, find_row
from herl.testing import make_judged, make_rollout, make_task


def pairs(first, second):
    return np.sum([pair_row(a, b) for a, b in zip(first, second, strict=True)], axis=0)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    first = rng.random(50) < rng.random()
    second = np.where(rng.random(50) < 0.3, ~first, first)
    expected = binary_cohen_kappa(torch.tensor(first).int(), torch.tensor(second).int())
    assert cohen_kappa(pairs(first, second)) == pytest.approx(float(expected), abs=1e-6)
    assert disagreement(pairs(first, second)) == np.mean(first != second)


def naive_alpha(units):
    """Observed by expected disagreement, over all ordered pairs of verdicts."""
    units = [[v for v in unit if v is not None] for unit in units]
    units = [unit for unit in units if len(unit) > 1]
    values = [v for unit in units for v in unit]
    observed = sum(sum(a != b for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units)
    expected = sum(a != b for a, b in permutations(values, 2)) / (len(values) - 1)
    return 1 - observed / expected


def alpha(units):
    return float(
        krippendorff_alpha(np.sum([alpha_row([v for v in u if v is not None]) for u in units], axis=0))
    )


@pytest.mark.parametrize("judges", [2, 3, 5])
def test_alpha_is_that_of_loops_over_all_pairs_with_verdicts_left_out(judges):
    rng = np.random.default_rng(judges)
    truth = rng.random((40, 1)) < 0.6
    given = np.where(rng.random((40, judges)) < 0.25, ~truth, truth).tolist()
    units = [[None if rng.random() < 0.2 else v for v in unit] for unit in given]
    assert alpha(units) == pytest.approx(naive_alpha(units))


def test_alpha_of_a_published_example():
    """Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section A."""
    a = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    b = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert alpha([list(map(bool, unit)) for unit in zip(a, b, strict=True)]) == pytest.approx(0.095, abs=5e-4)


def test_what_is_undefined_has_no_value():
    same = by_prompt([("a", pair_row(True, True)), ("b", pair_row(True, True))], 4)
    assert estimate(same, cohen_kappa, 2).value is None  # nothing but chance
    assert estimate(same, disagreement, 2).value == 0.0
    nothing = estimate(by_prompt([], 4), disagreement, 0)
    assert (nothing.value, nothing.low, nothing.count) == (None, None, 0)


def test_intervals_are_those_of_an_evaluation():
    """Answers to one prompt are drawn together."""
    rng = np.random.default_rng(0)
    tasks = [make_task({"fish": 1.0}, id=f"t{n // 2}") for n in range(40)]
    rewards = rng.random(40).round(2)
    judged = [
        make_judged(float(r), rollout=make_rollout(id=f"{n}", task_id=t.id))
        for n, (t, r) in enumerate(zip(tasks, rewards, strict=True))
    ]
    row = find_row(evaluation_rows(zip(tasks, judged, strict=True)), "reward")
    table = by_prompt([(t.id, (r, 1.0)) for t, r in zip(tasks, rewards, strict=True)], 2)
    found = estimate(table, ratio, 40)
    assert (found.value, found.low, found.high) == pytest.approx((row.mean, row.low, row.high))
