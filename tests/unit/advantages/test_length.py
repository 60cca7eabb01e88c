"""Length penalties against the papers' formulas in plain loops."""

import random
from functools import partial

import pytest
from hydra.utils import instantiate

from herl import ConfigError
from herl.advantages import group_advantages, ones
from herl.advantages.by_criterion import ByCriterion
from herl.advantages.contrast import Contrast
from herl.advantages.emphasis import EmphasizedAdvantages, emphasized
from herl.advantages.length import Overlong, PenalizedAdvantages, Shorter, penalized
from herl.testing import make_group, make_judged, make_rollout
from tests.support.configuration import composed


def answer(reward, name, tokens, met=None):
    return make_judged(reward, rollout=make_rollout(id=name, token_ids=[1] * tokens), met=met)


def groups(seed=0):
    chance = random.Random(seed)
    return [
        make_group(
            *(answer(chance.choice([0.0, 0.5, 1.0]), f"{g}/{i}", chance.randint(1, 40)) for i in range(5))
        )
        for g in range(3)
    ]


def overlong(rewards, lengths, limit=32, cache=8.0, weight=0.7):
    found = []
    for reward, length in zip(rewards, lengths, strict=True):
        if length <= limit - cache:
            found.append(reward)
        elif length <= limit:
            found.append(reward + weight * ((limit - cache) - length) / cache)
        else:
            found.append(reward - weight)
    return found


def shorter(rewards, lengths, weight=0.3, enough=0.5):
    found = []
    for reward, length in zip(rewards, lengths, strict=True):
        if max(lengths) == min(lengths):
            found.append(reward)
            continue
        share = 0.5 - (length - min(lengths)) / (max(lengths) - min(lengths))
        found.append(reward + weight * (share if reward >= enough else min(0.0, share)))
    return found


@pytest.mark.parametrize(
    ("penalty", "naive"),
    [(Overlong(32, buffer=0.25, weight=0.7), overlong), (Shorter(weight=0.3, at_least=0.5), shorter)],
)
def test_advantages_are_those_of_the_penalized_rewards(penalty, naive):
    for seed in range(5):
        given = groups(seed)
        found = penalized(partial(group_advantages, scale="none"), penalty)(given, 0)
        for group, advantages in zip(given, found, strict=True):
            lengths = [len(m.judged.rollout.token_ids) for m in group.members]
            rewards = naive([m.reward for m in group.members], lengths)
            mean = sum(rewards) / len(rewards)
            assert advantages == pytest.approx([reward - mean for reward in rewards])
            assert [m.reward for m in group.members] == [m.judged.reward for m in group.members]


@pytest.mark.parametrize("penalty", [Overlong(32, buffer=0.5, weight=0.01), Shorter()])
def test_length_alone_is_no_signal(penalty):
    """Divided by its own deviation, a penalty of 0.01 would be an advantage of -1.5."""
    group = make_group(
        *[make_judged(0.5, rollout=make_rollout(token_ids=[1] * n), id=f"a{n}") for n in (5, 6, 7, 28)]
    )
    assert penalized(group_advantages, penalty)([group], 0) == [[0.0] * 4]
    assert not penalized(group_advantages, penalty).spare_new


def test_answers_of_one_length_gain_and_lose_nothing():
    group = make_group(*(answer(r, str(r), 2) for r in (0.0, 1.0)))
    assert Shorter().added(group.members) == [0.0, 0.0]
    assert Shorter().added([]) == []


@pytest.mark.parametrize("advantages", [ones, partial(ones), ByCriterion()])
def test_advantages_that_see_no_rewards_are_refused(advantages):
    assert penalized(advantages) is advantages
    with pytest.raises(ConfigError, match="length_penalty: expected advantages that compare rewards"):
        penalized(advantages, Shorter())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Overlong(0), "length_penalty.max_tokens: expected a number above 0"),
        (lambda: Overlong(8, buffer=0.0), r"length_penalty.buffer: expected a share in \(0, 1\]"),
        (lambda: Shorter(weight=-1.0), "length_penalty.weight: expected a number above 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_penalty_is_added_to_the_rewards_of_an_emphasis():
    """Only river tells the answers apart: under the emphasis they earn 0, 1, 1, and the long one loses 1."""
    met = [{"fish": True, "river": False}, {"fish": True, "river": True}, {"fish": True, "river": True}]
    given = [make_group(*(answer(0.5, str(i), 1 + 18 * (i == 2), one) for i, one in enumerate(met)))]
    inner = penalized(partial(group_advantages, scale="none"), Overlong(10, buffer=0.5))
    assert emphasized(inner, Contrast())(given, 0)[0] == pytest.approx([-1 / 3, 2 / 3, -1 / 3])


def test_the_limit_of_an_episode_is_that_of_all_its_turns():
    made = composed("fit", "experiment=lookup", "length_penalty=overlong")
    assert made.length_penalty.max_tokens == made.environment.max_tokens
    assert made.length_penalty.max_tokens > made.rollout.attempt.max_new_tokens
    plain = composed("fit", "length_penalty=overlong")
    assert plain.length_penalty.max_tokens == plain.rollout.attempt.max_new_tokens


@pytest.mark.parametrize("choice", ["none", "overlong", "shorter"])
def test_choices(choice):
    made = instantiate(composed("fit", f"length_penalty={choice}").module.advantages)
    assert isinstance(made, PenalizedAdvantages) == (choice != "none")
    both = instantiate(composed("fit", f"length_penalty={choice}", "emphasis=contrast").module.advantages)
    assert isinstance(both, EmphasizedAdvantages)
