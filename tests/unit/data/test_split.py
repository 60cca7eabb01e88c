"""Which prompts are held out depends on each prompt alone."""

import pytest

from herl.data.split import prompt_hash, split_off
from herl.testing import make_task


def prompts(*numbers):
    return [make_task(id=str(n), request=f"Prompt {n}.") for n in numbers]


def requests(part):
    return {task.request for task in part}


def test_about_the_share_is_held_out_and_no_prompt_is_in_both_parts():
    tasks = [*prompts(*range(1000)), *prompts(*range(1000))]  # each prompt twice
    train, held = split_off(tasks, 0.1, seed=0)
    assert not requests(train) & requests(held)
    assert len(train) + len(held) == 2000
    assert 140 < len(held) < 260
    assert requests(split_off(tasks[::-1], 0.1, seed=0)[1]) == requests(held)
    assert requests(split_off(tasks, 0.1, seed=1)[1]) != requests(held)


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("count", [2, 5, 20, 200])
def test_adding_rows_never_holds_out_a_prompt_that_was_trained_on(count, share):
    train, held = split_off(prompts(*range(count)), share, seed=0)
    assert len(train)
    assert len(held)
    for more in (1, 20, 500):
        _, later = split_off(prompts(*range(count + more)), share, seed=0)
        assert not requests(train) & requests(later)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_of_two_prompts_one_is_held_out(share):
    train, held = split_off(prompts(1, 2, 1), share, seed=0)
    assert {len(requests(train)), len(requests(held))} == {1}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("\u00e9?", True), (" \u00e9?\n", True), ("e\u0301?", True),
        ("\u00c9?", False), ("\u00e9 ?", False), ("e?", False),
    ],
)  # fmt: skip
def test_prompts_count_as_equal_up_to_white_space_around_them_and_unicode_composition(other, same):
    one, two = make_task(request="\u00e9?"), make_task(request=other)
    assert (prompt_hash(one) == prompt_hash(two)) == same
