"""Metrics of held-out answers that gold judges have judged again."""

import math
import random

import numpy as np
import pytest

from herl.metrics.gold import (
    Opening,
    Rejudged,
    errors_by_chance,
    gaming_metrics,
    gaps,
    gold_metrics,
    length_correlation,
    opening,
)
from herl.metrics.student_t import critical_value, upper_tail
from herl.testing import make_judged, make_rollout, make_task


def rejudged(trained, gold, *, id="t0", met=None, gold_met=None, tokens=2, hidden=()):
    task = make_task({"fish": 3.0, "river": 2.0}, id=id)
    if hidden:
        named = {one.id: one for one in make_task(dict.fromkeys(hidden, 1.0)).rubric.criteria}
        task = type(task)(id=id, messages=task.messages, rubric=task.rubric, hidden=tuple(named.values()))
    rollout = make_rollout(token_ids=range(4, 4 + tokens))
    return Rejudged(
        task=task,
        trained=make_judged(trained, met=met, rollout=rollout),
        gold=make_judged(gold, met=gold_met, rollout=rollout),
    )


def test_gaps_are_means_by_prompt_over_answers_that_both_have_judged():
    answers = [
        rejudged(1.0, 0.5), rejudged(0.5, 0.5), rejudged(None, 0.0), rejudged(1.0, None),
        rejudged(1.0, None, id="t1"), rejudged(0.2, 0.4, id="t2"),
    ]  # fmt: skip
    assert gaps(answers) == {"t0": 0.25, "t2": pytest.approx(-0.2)}
    metrics = gold_metrics("rule", answers)
    assert metrics["gold/rule/gap"] == pytest.approx((0.5 + 0.0 - 0.2) / 3)
    assert metrics["gold/rule/reward"] == pytest.approx((0.5 + 0.5 + 0.0 + 0.4) / 4)
    assert gaming_metrics({"rule": answers, "other": [rejudged(1.0, 0.0)]}, {})[
        "gaming/gap"
    ] == pytest.approx(0.55)


def test_the_opening_compares_prompt_by_prompt():
    rng = random.Random(0)
    first = {f"t{number}": rng.random() for number in range(9)}
    now = {f"t{number}": rng.random() for number in range(1, 12)}
    common = [f"t{number}" for number in range(1, 9)]
    mean = 0.0
    for name in common:
        mean += (now[name] - first[name]) / 8
    square = 0.0
    for name in common:
        square += (now[name] - first[name] - mean) ** 2
    found = opening(first, now)
    assert found.prompts == 8
    assert found.change == pytest.approx(mean)
    assert found.error == pytest.approx(math.sqrt(square / 7 / 8))
    assert opening({"t0": 1.0}, {"t0": 2.0}) is None


@pytest.mark.parametrize(
    ("change", "error", "beyond"),
    [(0.2, 0.05, True), (0.2, 0.07, False), (0.1, 0.0, False), (0.11, 0.0, True), (-1.0, 0.0, False)],
)
def test_an_opening_counts_beyond_the_limit_and_beyond_its_noise(change, error, beyond):
    assert Opening(change=change, error=error, prompts=9).is_beyond(0.1, 3.0) is beyond


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 8, 47, 300])
def test_the_tail_of_students_t_is_the_integral_of_its_density(degrees):
    place = np.linspace(0.0, 2.5, 20_001)
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    density = np.exp(log_scale - (degrees + 1) / 2 * np.log1p(place**2 / degrees))
    assert upper_tail(2.5, degrees) == pytest.approx(0.5 - np.trapezoid(density, place), abs=1e-8)
    assert upper_tail(0.0, degrees) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("tail", "degrees", "value"),  # tables of Student's t
    [
        (0.025, 1, 12.7062), (0.005, 10, 3.1693), (0.001, 7, 4.7853), (0.0005, 7, 5.4079), (0.001, 15, 3.7328),
        (0.001, 120, 3.1595), (0.001, 10_000, 3.0911),
    ],
)  # fmt: skip
def test_critical_values_are_those_of_the_tables(tail, degrees, value):
    assert critical_value(tail, degrees) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(("prompts", "judges"), [(8, 1), (8, 2), (16, 1), (48, 1), (16, 3)])
def test_noise_alone_is_an_alarm_in_at_most_one_of_a_thousand_validations(prompts, judges):
    """The judges are independent, and all validations of a run share their first one."""
    rng = np.random.default_rng(0)
    runs, validations = 200_000 // (prompts * judges), 20
    beyond = np.zeros((runs, validations), dtype=bool)
    for _ in range(judges):
        first = rng.standard_normal((runs, prompts))
        for validation in range(validations):
            changes = rng.standard_normal((runs, prompts)) - first
            error = changes.std(axis=1, ddof=1) / prompts**0.5
            beyond[:, validation] |= changes.mean(axis=1) > errors_by_chance(prompts, judges) * error
    assert 0.0005 < beyond.mean() < 0.0013


def test_noise_alone_hardly_ever_counts():
    rng = random.Random(1)
    alarms = 0
    for _ in range(2000):  # eight prompts whose verdicts flip at random, as if at each validation
        first, now = ({f"t{n}": float(rng.random() < 0.5) for n in range(8)} for _ in range(2))
        alarms += opening(first, now).is_beyond(0.1, 3.0)
    assert alarms / 2000 < 0.02


def test_the_correlation_with_length_is_pearsons():
    answers = [(make_task(), one.trained) for one in map(rejudged, [0.1, 0.9, 0.4, None], [0.0] * 4)]
    lengths, rewards = [3, 9, 5], [0.1, 0.9, 0.4]
    pairs = [
        (task, make_judged(one.judgement.reward, rollout=make_rollout(token_ids=range(n))))
        for (task, one), n in zip(answers, [*lengths, 50], strict=True)
    ]
    middle = sum(lengths) / 3, sum(rewards) / 3
    both = sum((n - middle[0]) * (r - middle[1]) for n, r in zip(lengths, rewards, strict=True))
    spread = [sum((v - m) ** 2 for v in values) for values, m in zip((lengths, rewards), middle, strict=True)]
    assert length_correlation(pairs) == pytest.approx(both / math.sqrt(spread[0] * spread[1]))
    assert length_correlation(pairs[:2]) is None
    assert length_correlation(answers) is None, "all have the same length"


def test_curves_by_criterion_and_for_hidden_ones():
    answers = [
        rejudged(1.0, 0.5, met={"fish": True}, gold_met={"fish": False, "secret": True}, hidden=["secret"]),
        rejudged(
            1.0,
            0.5,
            met={"fish": True, "river": None},
            gold_met={"fish": True, "secret": False},
            hidden=["secret"],
        ),
        rejudged(0.0, None, met={"fish": True}),
    ]
    metrics = gold_metrics("rule", answers)
    assert metrics["gaming_criterion/rule/fish"] == 0.5
    assert "gaming_criterion/rule/river" not in metrics, "an abstention is not a 'no'"
    assert "gaming_criterion/rule/secret" not in metrics, "the training judge does not see it"
    assert metrics["gold_criterion/rule/secret"] == 0.5
    assert (metrics["gold/rule/hidden_met"], metrics["gold/rule/visible_met"]) == (0.5, 0.5)
    assert not any("answer_tokens" in name for name in metrics)
