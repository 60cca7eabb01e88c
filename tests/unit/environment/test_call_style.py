"""Ids of calls."""

import pytest

from herl.environment.call_style import call_numbers
from herl.environment.calls import Call


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        (["abcdefghi", "ABCDEFGH1"], ["abcdefghi", "ABCDEFGH1"]),
        (["abcdefghi", ""], ["abcdefghi", "000300001"]),
        (["call-1", "two"], ["000300000", "000300001"]),
        (["abcdefghi", "abcdefghi"], ["000300000", "000300001"]),
        (["000300001", ""], ["000300000", "000300001"]),
        ([], []),
    ],
)
def test_calls_have_different_ids_that_any_template_takes(given, numbers):
    assert call_numbers([Call(name="f", id=one) for one in given], 3) == numbers
