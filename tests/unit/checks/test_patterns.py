import pytest
import regex

from herl.checks.patterns import MAX_SIZE, compiled, size


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("abc", 3), ("(ab){3}c{2,5}", 14), (r"\d{4}-\d{2}", 7), ("[a{9}]{3}", 3), ("[]a]{4}", 4), ("a*b+", 4),
        ("a{,3}", 3), ("(?:(?:a{99}){99}){99}", 999999), ("", 0), ("a{1000000000}", 10**9),
    ],
)  # fmt: skip
def test_repeats_count_as_often_as_they_are_written_out(pattern, parts):
    assert size(pattern) == parts


@pytest.mark.parametrize("pattern", ["a{1000000000}", "(?:a{9999}){9999}", "a" * (MAX_SIZE + 1)])
def test_a_pattern_that_would_take_all_memory_is_refused(pattern):
    with pytest.raises(regex.error, match="more than 100000"):
        compiled(pattern)
