import pytest

from tests.support.fuzz import run


@pytest.mark.integration
def test_random_input_ends_in_a_valid_object_or_in_a_clear_error():
    ended = run(150)
    assert all(sum(counts.values()) >= 150 for counts in ended.values())
    assert all(counts["valid"] for counts in ended.values())
    assert not any(counts["without a word"] for counts in ended.values())
    assert ended["rows"]["DataError"]
    assert ended["configurations"]["ConfigError"]
