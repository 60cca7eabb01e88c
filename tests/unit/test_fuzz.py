import pytest

from tests.support.fuzz import KINDS, run


@pytest.mark.integration
@pytest.mark.parametrize("kind", KINDS)
def test_random_input_ends_in_a_value_an_abstention_or_a_clear_error(kind):
    cases = 150 if kind in ("rows", "replies") else 40
    counts = run(cases, kinds=[kind])[kind].counts
    assert sum(counts.values()) >= cases
    assert len(counts) > 1 or kind == "answers"
    assert not counts["without a word"]
