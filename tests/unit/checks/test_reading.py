"""Every mistake in a check is found when its row is read, and told in plain words."""

import pytest

from herl.checks import KINDS
from herl.data.formats import task_of
from herl.data.rows import Row
from herl.errors import DataError


def read(check):
    rubric = [{"text": "One.", "check": check}]
    [criterion] = task_of(
        Row(place="a.jsonl:3", number=3, value={"prompt": "?", "rubric": rubric})
    ).rubric.criteria
    return criterion.check


@pytest.mark.parametrize(
    ("check", "why"),
    [
        ("fish", ": expected a mapping such as {\"kind\": \"contains\", \"text\": \"fish\"}, got the text 'fish'"),
        ({"text": "a"}, ".kind: expected one of contains, "),
        ({"kind": "contain", "text": "a"}, "got the text 'contain'. Did you mean 'contains'?"),
        ({"kind": "mine"}, "a kind that a judge of your own reads must begin with 'x-'"),
        ({"kind": "contains"}, ".text: expected a text that is not empty, got nothing"),
        ({"kind": "contains", "text": ""}, ".text: expected a text that is not empty, got an empty text"),
        ({"kind": "contains", "text": 3}, ".text: expected a text that is not empty, got the number 3"),
        ({"kind": "contains", "text": "a", "texts": ["a"]}, ".texts: a check of the kind 'contains' has the keys text"),
        ({"kind": "equals", "text": " "}, ".text: expected a text that is not empty, got the text ' '"),
        *(({"kind": kind, "texts": "fish"}, ".texts: expected a list of texts, got the text 'fish'")
          for kind in ("contains_any", "contains_all", "excludes")),
        ({"kind": "excludes", "texts": []}, ".texts: expected a list of texts, got an empty list"),
        ({"kind": "excludes", "texts": ["a", ""]}, ".texts.1: expected a text that is not empty, got an empty text"),
        ({"kind": "regex", "pattern": "("}, ".pattern: expected a pattern, got the text '(': missing )"),
        ({"kind": "max_words", "count": -1}, ".count: expected a whole number, at least 0, got the number -1"),
        ({"kind": "max_words", "count": True}, ".count: expected a whole number, at least 0, got true"),
        ({"kind": "max_words", "count": "5"}, ".count: expected a whole number, at least 0, got the text '5'"),
        ({"kind": "count", "of": "verses", "at_most": 1}, ".of: expected one of words, sentences"),
        ({"kind": "exact_match", "texts": []}, ".texts: expected a list of texts, got an empty list"),
        ({"kind": "exact_match", "texts": ["4"], "steps": [{"find": "("}]}, "expected a list of lowercase"),
        ({"kind": "exact_match", "texts": ["4"], "steps": ["reverse"]}, "expected a list of lowercase"),
        ({"kind": "exact_match", "texts": ["4"], "ignore_patterns": ["("]}, "expected a pattern, got the text '('"),
        ({"kind": "count", "of": {"regex": "("}, "at_most": 1}, ".of.regex: expected a pattern, got the text '('"),
        ({"kind": "count", "of": "words"}, ": expected at_least, at_most or both, got neither"),
        ({"kind": "count", "of": "words", "at_least": 3, "at_most": 2}, "at_least up to at_most, got 3 and 2"),
        ({"kind": "numeric", "value": float("nan")}, ".value: expected a number, got the number nan"),
        ({"kind": "numeric", "value": "3"}, ".value: expected a number, got the text '3'"),
        ({"kind": "numeric", "value": 3, "tolerance": 5}, ".tolerance: expected a share of the value"),
        ({"kind": "json", "schema": {"type": "thing"}}, "'thing' is not valid"),
        ({"kind": "json", "schema": {"pattern": "("}}, ".schema: expected a JSON schema"),
        ({"kind": "json", "schema": {"$ref": "http://a/b"}}, "'http://a/b' is not in the schema"),
        ({"kind": "json", "schema": {"$ref": "#"}}, "it cannot be applied (RecursionError)"),
        ({"kind": "python"}, ".path: expected the path of a function"),
        ({"kind": "instruction"}, ".instruction_id: expected an instruction such as"),
    ],
)  # fmt: skip
def test_a_mistake_is_an_error_of_its_row(check, why):
    with pytest.raises(DataError) as caught:
        read(check)
    assert str(caught.value).startswith("a.jsonl:3: rubric.0.check")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "check",
    [
        {"kind": "max_words", "count": 5.0},
        {"kind": "regex", "pattern": r"\p{Lu}[[:alpha:]]"},
        {"kind": "json", "schema": {"properties": {"pattern": {"type": "string"}}}},
        {"kind": "python", "path": "my_checks.rhymes", "word": "cat"},
        {"kind": "x-rhyme", "with": ["cat", 3]},
    ],
)
def test_a_sound_check_is_kept_as_it_stands(check):
    assert read(check) == check


def test_null_is_missing():
    filled = dict.fromkeys(["text", "texts", "count", "pattern", "schema"])
    assert read({**filled, "kind": "contains", "text": "fish"}) == {"kind": "contains", "text": "fish"}
    assert read({**filled, "kind": None}) is None
    nested = {"properties": {"a": {"type": "null", "const": None}}}
    assert read({"kind": "json", "schema": nested, "text": None})["schema"] == nested


def test_every_kind_is_in_the_table():
    from herl.checks import kinds

    assert all(f"| {kind} " in kinds.__doc__ for kind in KINDS)
