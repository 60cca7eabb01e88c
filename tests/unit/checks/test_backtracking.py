"""Which patterns may take exponential time, by their writing."""

import pytest

from herl.checks.backtracking import nested_repeat


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        (r"^(\w+[\s.,]*)+!$", r"(\w+[\s.,]*)+"), (r"^([\w .]+\s?)*!$", r"([\w .]+\s?)*"), ("(x+x+)+y", "(x+x+)+"),
        ("((a*)b?)*", "((a*)b?)*"), ("(?:(?:a+))+", "(?:(?:a+))+"), (r"(?i)(\w+)*$", r"(\w+)*"),
        (r"(?P<x>\w{2,})+?", r"(?P<x>\w{2,})+?"), ("z(a|b+){3,}", "(a|b+){3,}"), ("(?#c)(a+)+", "(a+)+"),
        (r"(?:\d+,)*\d+", None), (r"(?:\w+\s)+", None), (r"(\w+)?", None), ("(?:a++)+", None), ("(?>a+)+", None),
        (r"[\])+*]+(a+)", None), (r"\(a+\)+", None), ("(?<=a+)b+", None), (r"(\w{2,5})+", None), ("[(a+)+]", None),
        ("((", None), ("*", None), ("))+", None),
    ],
)  # fmt: skip
def test_a_repeat_of_nothing_but_a_repeat_is_named(pattern, part):
    assert nested_repeat(pattern) == part
