import pytest

from herl import Criterion, Rubric, Verdict
from herl.judge import aggregation

RUBRIC = Rubric(
    criteria=(
        Criterion(id="a", text="a", weight=3, category="Essential"),
        Criterion(id="b", text="b", weight=1, category="Optional", gate=True),
        Criterion(id="bad", text="bad", weight=-2, category="Pitfall", undesirable=True),
    )
)


def verdicts(a, b, bad):
    return [Verdict(criterion_id=k, met=v) for k, v in (("a", a), ("b", b), ("bad", bad))]


def test_weighted_subtracts_what_is_bad_and_clips():
    assert aggregation.weighted(RUBRIC, verdicts(True, False, False)) == 0.75
    assert aggregation.weighted(RUBRIC, verdicts(True, False, True)) == 0.25
    assert aggregation.weighted(RUBRIC, verdicts(False, False, True)) == 0.0
    assert aggregation.weighted(RUBRIC, verdicts(False, False, True), clip=False) == -0.5


def test_an_abstention_leaves_both_sums():
    assert aggregation.weighted(RUBRIC, verdicts(None, True, None)) == 1.0
    assert aggregation.weighted(RUBRIC, verdicts(None, True, True)) == 0.0
    assert aggregation.absolute(RUBRIC, verdicts(True, None, None)) == 1.0


@pytest.mark.parametrize(
    "name",
    ["weighted", "absolute", "all_or_nothing", "gated", "by_category", "healthbench", "herl_medicine"],
)
def test_nothing_judged_is_no_reward(name):
    assert getattr(aggregation, name)(RUBRIC, verdicts(None, None, None)) is None


def test_only_penalties_judged_is_no_reward_rather_than_a_division_by_zero():
    assert aggregation.weighted(RUBRIC, verdicts(None, None, True)) is None


def test_absolute_divides_by_all_weights():
    assert aggregation.absolute(RUBRIC, verdicts(True, True, True)) == pytest.approx(2 / 6)


def test_all_or_nothing():
    assert aggregation.all_or_nothing(RUBRIC, verdicts(True, True, False)) == 1.0
    assert aggregation.all_or_nothing(RUBRIC, verdicts(True, True, True)) == 0.0
    assert aggregation.all_or_nothing(RUBRIC, verdicts(True, None, False)) == 1.0


def test_a_failed_gate_earns_nothing():
    assert aggregation.gated(RUBRIC, verdicts(True, False, False)) == 0.0
    assert aggregation.gated(RUBRIC, verdicts(True, True, False)) == 1.0


def test_by_category_counts_an_avoided_pitfall_as_good():
    assert aggregation.by_category(RUBRIC, verdicts(True, False, False)) == pytest.approx(1.9 / 2.2)


def test_a_positively_worded_pitfall_costs_its_weight_when_it_fails():
    rubric = Rubric(criteria=(Criterion(id="a", text="a", weight=2), Criterion(id="p", text="p", weight=-1)))
    good = [Verdict(criterion_id="a", met=True), Verdict(criterion_id="p", met=True)]
    bad = [Verdict(criterion_id="a", met=True), Verdict(criterion_id="p", met=False)]
    assert aggregation.weighted(rubric, good) == 1.0
    assert aggregation.weighted(rubric, bad) == 0.5


def test_graded_scores_count_in_part():
    graded = [Verdict(criterion_id="a", met=True, score=0.5), Verdict(criterion_id="b", met=True)]
    assert aggregation.weighted(RUBRIC, graded) == pytest.approx(2.5 / 4)


def judged(weights, met):
    """Verdicts on criteria with these weights; meeting one with a negative weight is bad."""
    criteria = tuple(
        Criterion(id=str(n), text="?", weight=weight, undesirable=weight < 0)
        for n, weight in enumerate(weights)
    )
    return Rubric(criteria=criteria), [Verdict(criterion_id=str(n), met=value) for n, value in enumerate(met)]


@pytest.mark.parametrize(
    ("name", "weights", "met", "published"),
    [
        # openai/simple-evals, healthbench_eval_test.py: (7 + 10 - 6) / (7 + 5 + 10)
        ("healthbench", (7, 5, 10, -6), (True, False, True, True), 11 / 22),
        ("healthbench", (7, 5, 10, -6), (False, False, False, True), -6 / 22),  # no answer is clipped
        ("healthbench", (7, 5, 10, -6), (True, True, True, False), 1.0),  # an avoided penalty earns nothing
        ("healthbench", (7, 5, 10, -6), (True, None, False, None), 7 / 17),  # abstentions leave both sums
        # sikelifei/HeRL, rar_implicit.py: _normalize_weight turns -2 into 0
        ("herl_medicine", (5, 3, 1, -2), (True, False, True, True), 6 / 9),
        ("herl_medicine", (5, 3, 1, -2), (True, False, True, False), 6 / 9),
        ("herl_medicine", (5, 3, 1, -2), (True, None, True, None), 1.0),
        ("herl_medicine", (5, -2), (None, True), None),
        ("weighted", (7, 5, 10, -6), (False, False, False, True), 0.0),
        ("absolute", (7, 5, 10, -6), (True, True, True, False), 22 / 28),
    ],
)
def test_published_numbers(name, weights, met, published):
    assert getattr(aggregation, name)(*judged(weights, met)) == (published and pytest.approx(published))


def test_the_explicit_aggregation_of_rubrics_as_rewards():
    names = ("Essential", "Important", "Optional", "Pitfall", "Pitfall")
    criteria = tuple(
        Criterion(id=str(n), text="?", weight=5, category=name, undesirable=name == "Pitfall")
        for n, name in enumerate(names)
    )
    verdicts = [
        Verdict(criterion_id=str(n), met=met) for n, met in enumerate((True, False, True, False, True))
    ]
    # 1.0 + 0.3 and one avoided pitfall of 0.9, of 1.0 + 0.7 + 0.3 + 0.9 + 0.9
    assert aggregation.by_category(Rubric(criteria=criteria), verdicts) == pytest.approx(2.2 / 3.8)
