"""How revision prompts list criteria, for every builder."""

import random

import pytest

from herl.errors import ConfigError
from herl.hindsight.revision import RevisionBuilder
from herl.hindsight.told import ToldBuilder
from herl.hindsight.wording import heaviest, listed
from herl.testing import make_judged, make_task
from herl.types import Criterion

RUBRIC = [
    Criterion(id="food", text="Says that it eats fish.", weight=3.0),
    Criterion(id="tone", text="Is it kind?", weight=0.5),
    Criterion(id="advert", text="Advertises a zoo", weight=-2.0, undesirable=True),
]


@pytest.mark.parametrize(
    ("style", "weights", "expected"),
    [
        (
            "bullets",
            True,
            "- Says that it eats fish. (3)\n- Is it kind? (0.5)\n- Avoid: Advertises a zoo (2)",
        ),
        ("bullets", False, "- Says that it eats fish.\n- Is it kind?\n- Avoid: Advertises a zoo"),
        ("sentences", True, "Says that it eats fish (3). Is it kind (0.5)? Avoid: Advertises a zoo (2)."),
        ("sentences", False, "Says that it eats fish. Is it kind? Avoid: Advertises a zoo."),
    ],
)
def test_a_style_and_weights_set_how_criteria_are_listed(style, weights, expected):
    assert listed(RUBRIC, style, weights) == expected
    assert listed([], style, weights) == {"bullets": "- nothing", "sentences": "Nothing."}[style]


def test_the_heaviest_criteria_are_those_that_a_loop_over_maxima_picks():
    draw = random.Random(0)
    for count in range(7):
        weights = [draw.choice([-3.0, -1.0, 1.0, 2.0, 3.0]) for _ in range(count)]
        criteria = [Criterion(id=str(place), text="x", weight=weight) for place, weight in enumerate(weights)]
        for limit in range(1, 9):
            left = list(range(count))
            kept = []
            while left and len(kept) < limit:
                heavy = max(abs(weights[place]) for place in left)
                first = next(place for place in left if abs(weights[place]) == heavy)
                kept.append(first)
                left.remove(first)
            assert [int(c.id) for c in heaviest(criteria, limit)] == sorted(kept)
        assert heaviest(criteria, None) == tuple(criteria)


def test_builders_list_criteria_as_they_are_set():
    task = make_task({"fish": 3.0, "river": 2.0, "brown": 4.0})
    judged = make_judged(0.3, met={"fish": True, "river": False, "brown": False})
    plain = {"style": "sentences", "weights": False, "max_missed": 1}
    [hindsight] = RevisionBuilder(template="{request} {met} {missed}", **plain).build(task, [judged])
    assert hindsight.messages[-1]["content"] == "Describe the otter. Says fish. Says brown."
    assert [criterion.id for criterion in hindsight.missed] == ["brown"], (
        "what the prompt does not say is no hindsight"
    )
    assert [criterion.id for criterion in hindsight.met] == ["fish"]
    told = ToldBuilder(template="{request} {rubric}", **plain | {"max_missed": 2}).tell(task)
    assert told[-1]["content"] == "Describe the otter. Says fish. Says brown."


@pytest.mark.parametrize("builder", [RevisionBuilder, ToldBuilder])
def test_a_prompt_without_criteria_is_refused(builder):
    with pytest.raises(ConfigError, match=r"hindsight.max_missed: expected at least 1, got 0"):
        builder(max_missed=0)
