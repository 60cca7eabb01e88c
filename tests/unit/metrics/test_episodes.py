"""Curves of episodes, counted by hand."""

from dataclasses import replace

import pytest

from herl.metrics.collection import collection_metrics
from herl.metrics.episodes import episode_metrics
from herl.metrics.heldout import heldout_metrics
from herl.rollout.collect import Collection
from herl.rollout.improve import Trajectory
from herl.rollout.validate import HeldOut
from herl.testing import make_group, make_judged, make_rollout, make_task
from tests.support.made_up_episodes import an_episode

ANSWERS = [
    an_episode(),
    an_episode(finish_reason="turns"),
    make_rollout("fish"),
    an_episode(finish_reason="failed"),
]
BY_HAND = {
    "turns": (3 + 3 + 1 + 3) / 4, "calls": 9 / 4, "reply_tokens": 18 / 4, "failed_calls": 3 / 9, "failed": 1 / 4,
    "cut_by_turns": 1 / 4, "cut_by_length": 0.0, "cut_by_seconds": 0.0,
}  # fmt: skip


def test_they_are_those_counted_by_hand():
    assert episode_metrics(ANSWERS) == pytest.approx(BY_HAND)
    ends = {"length": "cut_by_length", "seconds": "cut_by_seconds", "turns": "cut_by_turns"}
    for reason, name in ends.items():
        found = episode_metrics([an_episode(finish_reason=reason)])
        assert {key for key, value in found.items() if key.startswith("cut") and value} == {name}


def test_a_mean_over_nothing_is_left_out():
    assert episode_metrics([]) == {}
    found = episode_metrics([make_rollout()])
    assert "failed_calls" not in found
    assert (found["turns"], found["calls"]) == (1.0, 0.0), "an environment that was silent"


def grouped(judged):
    return replace(make_group(*judged), advantages=(0.0,) * len(judged))


def collection(episodes):
    judged = [make_judged(0.1 * n, rollout=one) for n, one in enumerate(ANSWERS)]
    return Collection(groups=(grouped(judged),), experiences=(), dropped={}, episodes=episodes)


def test_a_step_has_them_only_with_an_environment():
    found, without = collection_metrics(collection(True)), collection_metrics(collection(False))
    assert {f"episodes/{name}": value for name, value in BY_HAND.items()} == pytest.approx(
        {name: value for name, value in found.items() if name not in without}
    )
    assert without == {name: value for name, value in found.items() if name in without}


def test_so_have_validations_of_their_plain_attempts():
    trajectories = tuple(
        Trajectory(
            task=make_task(), answers=(make_judged(0.5, rollout=one), make_judged(1.0, rollout=ANSWERS[2]))
        )
        for one in ANSWERS
    )
    with_and_without = [
        heldout_metrics([HeldOut(trajectories=trajectories, dropped={}, episodes=episodes)], 0)
        for episodes in (True, False)
    ]
    more = {name: value for name, value in with_and_without[0].items() if name not in with_and_without[1]}
    assert more == pytest.approx({f"heldout/{name}": value for name, value in BY_HAND.items()})


def test_a_copy_is_one_in_all_turns():
    """Replies are not the policy's words."""
    draft = an_episode("fish", id="d")
    copy, other = an_episode("fish", id="r", parent_id="d"), make_rollout("fish", id="s", parent_id="d")
    for revision, copies in ((copy, 1.0), (other, 0.0)):
        judged = [make_judged(0.5, rollout=one) for one in (draft, revision)]
        found = collection_metrics(Collection(groups=(grouped(judged),), experiences=(), dropped={}))
        assert found["hindsight/copies"] == copies
        assert found["hindsight/edit_distance"] == pytest.approx((1 - copies) * 5 / 6), "5 of 6 words"
