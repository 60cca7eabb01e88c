import itertools
import math
from functools import partial

import numpy as np
import pytest

from herl.advantages import check_takes_groups, group_advantages, ones
from herl.errors import ConfigError
from herl.testing import check_advantages, make_group, make_judged

REWARDS = [[0.1, 0.9, 0.4, 0.6], [0.5, 0.5, 0.5], [1.0, 0.0], [0.2]]
OWN = [[True, True, True, False], [True, True, True], [True, False], [True]]


def advantages(rewards, is_attempt, **options):
    """Those of groups with these rewards."""
    parents = [[None if attempt else "group/0" for attempt in group] for group in is_attempt]
    groups = [
        make_group(*(make_judged(r, parent_id=parent) for r, parent in zip(*group, strict=True)))
        for group in zip(rewards, parents, strict=True)
    ]
    return group_advantages(groups, **options)


def naive(rewards, own, scale, baseline, over):
    """The same in numpy, group by group."""
    centred = []
    for values, mine in zip(rewards, own, strict=True):
        values = np.array(values, dtype=np.float64)
        counted = np.array(mine) if over == "attempts" else np.ones(len(values), dtype=bool)
        group = []
        for i, value in enumerate(values):
            if baseline == "leave_one_out" and counted[i] and counted.sum() > 1:
                others = counted.copy()
                others[i] = False
                group.append(value - values[others].mean())
            else:
                group.append(value - values[counted].mean())
        centred.append(np.array(group))
    signal = [np.ptp(values) >= 1e-4 for values in rewards]
    pool = np.concatenate([c for c, s in zip(centred, signal, strict=True) if s])
    result = []
    for values, c, s in zip(rewards, centred, signal, strict=True):
        if scale == "group_std":
            divisor = (np.std(values, ddof=1) if len(values) > 1 else 0.0) + 1e-6
        else:
            divisor = pool.std(ddof=1) + 1e-6 if scale == "batch_std" else 1.0
        result.append(c / divisor if s else np.zeros(len(c)))
    return result


@pytest.mark.parametrize(
    ("scale", "baseline", "over"),
    list(
        itertools.product(("group_std", "batch_std", "none"), ("mean", "leave_one_out"), ("all", "attempts"))
    ),
)
def test_equals_the_naive_implementation(scale, baseline, over):
    got = advantages(REWARDS, OWN, scale=scale, baseline=baseline, baseline_over=over)
    for values, expected in zip(got, naive(REWARDS, OWN, scale, baseline, over), strict=True):
        assert values == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)


def test_two_members_get_plus_and_minus_one_over_root_two():
    [found] = advantages([[1.0, 0.0]], [[True, True]])
    assert found == pytest.approx([1 / math.sqrt(2), -1 / math.sqrt(2)], rel=1e-5)


def test_a_group_without_signal_gets_exactly_zero():
    assert advantages([[0.3, 0.3 + 5e-5]], [[True, True]]) == [[0.0, 0.0]]


def test_equal_attempts_do_not_blow_up_what_a_revision_stands_out_by():
    [found] = advantages([[0.5, 0.5, 0.5, 0.8]], [[True, True, True, False]], baseline_over="attempts")
    assert found == pytest.approx([0.0, 0.0, 0.0, 2.0], rel=1e-4)


def test_tolerance_is_where_signal_begins():
    [below] = advantages([[0.30, 0.39]], [[True, True]], tolerance=0.1)
    [above] = advantages([[0.30, 0.41]], [[True, True]], tolerance=0.1)
    assert below == [0.0, 0.0]
    assert above[1] > 0


def test_empty_groups_and_batches_are_fine():
    assert advantages([], []) == []
    assert advantages([[]], [[]]) == [[]]


def test_a_group_of_revisions_alone_still_has_a_baseline():
    [found] = advantages([[1.0, 0.0]], [[False, False]], baseline_over="attempts", scale="none")
    assert found == [0.5, -0.5]


def test_the_bonus_counts():
    group = make_group(make_judged(0.5), make_judged(0.4), bonuses=(0.0, 0.3))
    assert group_advantages([group], scale="none") == [pytest.approx([-0.1, 0.1])]


@pytest.mark.parametrize(
    "shipped",
    [
        group_advantages,
        ones,
        partial(group_advantages, scale="batch_std", baseline="leave_one_out"),
        partial(group_advantages, scale="none", baseline_over="attempts"),
    ],
)
def test_the_shipped_advantages_keep_the_contract(shipped):
    check_advantages(shipped)


def test_advantages_that_leave_members_out_break_the_contract():
    with pytest.raises(AssertionError, match="one advantage for each member"):
        check_advantages(lambda groups, seed: [[1.0] * len(group.members[:1]) for group in groups])


def test_a_function_that_takes_rewards_is_told_what_changed():
    def mine(rewards, is_attempt):
        return rewards

    with pytest.raises(
        ConfigError, match=r"function of \(groups, seed\), got one of \(rewards, is_attempt\)"
    ):
        check_takes_groups(mine)
    for fine in (group_advantages, partial(ones), lambda groups, seed: []):
        check_takes_groups(fine)
