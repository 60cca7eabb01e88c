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
        ({"kind": "contains_all", "texts": ["a", "b"]}, "ab", True),
        ({"kind": "contains_all", "texts": ["a", "b"]}, "a", False),
        ({"kind": "excludes", "texts": ["zoo", "visit"]}, "It swims.", True),
        ({"kind": "excludes", "texts": ["zoo", "visit"]}, "Visit us.", False),
        ({"kind": "ends_with", "text": "bye."}, "Good Bye. ", True),
        ({"kind": "ends_with", "text": "bye."}, "Bye. Now", False),
        ({"kind": "equals", "text": "Yes"}, " yes\n", True),
        ({"kind": "equals", "text": "Yes"}, "yes!", False),
        ({"kind": "count", "of": "words", "at_least": 2, "at_most": 3}, "a b c", True),
        ({"kind": "count", "of": "sentences", "at_most": 2}, "One. Two! Three?", False),
        ({"kind": "count", "of": "sentences", "at_least": 3, "at_most": 3}, "One. Two... Three", True),
        ({"kind": "count", "of": "lines", "at_least": 2, "at_most": 2}, "a\n\nb\n", True),
        ({"kind": "count", "of": "paragraphs", "at_least": 2, "at_most": 2}, "a\nb\n\nc", True),
        ({"kind": "count", "of": "characters", "at_most": 3}, "a\nbc", False),
        ({"kind": "count", "of": {"regex": r"\bfish\b"}, "at_least": 2}, "fish, fish", True),
        ({"kind": "json"}, '```json\n{"a": 1}\n```', True),
        ({"kind": "json"}, "{a: 1}", False),
        ({"kind": "json", "schema": {"type": "object", "required": ["a"]}}, '{"a": 1}', True),
        ({"kind": "json", "schema": {"type": "object", "required": ["a"]}}, '{"b": 1}', False),
    ],
)
def test_checks(check, answer, met):
    assert verdict(check, answer).met is met


@pytest.mark.parametrize(
    ("check", "why"),
    [
        (None, "expected check.kind to be one of contains"),
        ({"kind": "contain", "text": "x"}, "Did you mean 'contains'?"),
        ({"kind": "contains", "word": "x"}, "unexpected keyword argument 'word'"),
        ({"kind": "regex", "pattern": "("}, "unterminated subpattern"),
        ({"kind": "count", "of": "verses"}, "expected 'of' to be one of words"),
        ({"kind": "json", "schema": {"type": "thing"}}, "'thing' is not valid"),
        ({"kind": "python", "path": "os.getcwd"}, "expected a function from one of judge.python_modules"),
    ],
)
def test_a_check_that_cannot_be_applied_abstains_and_says_why(check, why):
    found = verdict(check, "anything")
    assert found.met is None
    assert why in found.reason


def test_functions_are_called_from_allowed_modules_only(tmp_path, monkeypatch):
    (tmp_path / "my_checks.py").write_text(
        "def rhymes(answer, *, word):\n    return answer.endswith(word[-2:])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    check = {"kind": "python", "path": "my_checks.rhymes", "word": "cat"}
    rubric = Rubric(criteria=(Criterion(id="c", text="...", check=check),))
    task = Task(id="t", messages=({"role": "user", "content": "?"},), rubric=rubric)

    def met(judge):
        return asyncio.run(judge.judge(task, make_rollout("a hat"))).verdicts[0].met

    assert met(RuleJudge(python_modules=["my_checks"])) is True
    assert met(RuleJudge(python_modules=["my_check"])) is None


def test_keeps_the_contract():
    assert check_judge(RuleJudge()).reward == pytest.approx(0.6)
