"""Metrics of held-out answers that gold judges have judged again."""

import math
import random

import pytest

from herl.metrics.gold import (
    Opening,
    Rejudged,
    gaming_metrics,
    gaps,
    gold_metrics,
    length_correlation,
    opening,
)
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
