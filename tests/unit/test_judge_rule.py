import asyncio

import pytest

from herl import Criterion, Rubric, Task
from herl.judge.rule import RuleJudge
from herl.testing import check_judge, make_rollout


def verdict(check, answer):
    rubric = Rubric(criteria=(Criterion(id="c", text="...", check=check),))
    task = Task(id="t", messages=({"role": "user", "content": "?"},), rubric=rubric)
    [found] = asyncio.run(RuleJudge().judge(task, make_rollout(answer))).verdicts
    return found


@pytest.mark.parametrize(
    ("check", "answer", "met"),
    [
        ({"kind": "contains", "text": "eats fish"}, "It EATS FISH.", True),
        ({"kind": "contains", "text": "eats fish"}, "It eats a fish.", False),
        ({"kind": "contains_any", "texts": ["a", "z"]}, "xyz", True),
        ({"kind": "contains_any", "texts": ["a", "b"]}, "xyz", False),
        ({"kind": "starts_with", "text": "hello"}, " Hello there", True),
        ({"kind": "starts_with", "text": "hello"}, "Oh hello", False),
        ({"kind": "regex", "pattern": r"\d{3}"}, "call 911", True),
        ({"kind": "regex", "pattern": r"^\d{3}$"}, "call 911", False),
        ({"kind": "max_words", "count": 2}, "two words", True),
        ({"kind": "max_words", "count": 2}, "now three words", False),
        ({"kind": "min_words", "count": 2}, "two words", True),
        ({"kind": "min_words", "count": 2}, "one", False),
        ({"kind": "numeric", "value": 1200}, "12 times 100 is 1,200.", True),
        ({"kind": "numeric", "value": 3, "tolerance": 0.1}, "about 3.2", True),
        ({"kind": "numeric", "value": 3}, "about 3.2", False),
        ({"kind": "numeric", "value": 3}, "no number", False),
    ],
)
def test_checks(check, answer, met):
    assert verdict(check, answer).met is met


@pytest.mark.parametrize(
    ("check", "why"),
    [
        (None, "expected a check of kind contains"),
        ({"kind": "contain", "text": "x"}, "Did you mean 'contains'?"),
        ({"kind": "contains", "word": "x"}, "unexpected keyword argument 'word'"),
        ({"kind": "regex", "pattern": "("}, "unterminated subpattern"),
    ],
)
def test_a_check_that_cannot_be_applied_abstains_and_says_why(check, why):
    found = verdict(check, "anything")
    assert found.met is None
    assert why in found.reason


def test_keeps_the_contract():
    assert check_judge(RuleJudge()).reward == pytest.approx(0.6)
