"""Rewards of environments of the package `verifiers`, whatever they return or raise."""

import asyncio
from dataclasses import replace

import pytest

from herl.errors import ConfigError, JudgeError
from herl.judge.runner import JudgeRunner
from tests.support.verifiers_play import PRICE, answer_of, installed, play, scores

pytest.importorskip("verifiers")
from herl.verifiers.data import environment_rows
from herl.verifiers.judge import VerifiersJudge
from herl.verifiers.loading import loaded


@pytest.fixture(scope="module", autouse=True)
def rooms(tmp_path_factory):
    with installed(tmp_path_factory.mktemp("rooms")):
        yield


def test_a_reward_that_exits_is_cancelled_or_returns_no_number_abstains_alone():
    _, _, judgement = play("herl_shop", [PRICE % "apple", "It is 7."], {"extra": "many"}, timeout_seconds=5)
    found = scores(judgement)
    assert {one for one, score in found.items() if score is None} == {
        "leaves", "cancelled", "nothing", "several", "no_number",
    }  # fmt: skip
    assert found["right"] == found["certain"] == 1.0
    assert judgement.usage["abstained_function"] == 5


def test_a_partial_function_has_the_name_and_the_text_of_what_it_calls():
    criteria = loaded("herl_shop", {"extra": "partial"}).rubric.criteria[-2:]
    assert [(one.id, one.text) for one in criteria] == [
        ("at_most", "Is brief."),
        ("at_most#2", "Is brief."),
    ]
    _, _, judgement = play("herl_shop", ["It is 7 I think."], {"extra": "partial"})
    assert [scores(judgement)[one] for one in ("at_most", "at_most#2")] == [0.0, 1.0]


@pytest.mark.parametrize("cut", ["so it is 5", "5 or 6", ""])
def test_an_answer_that_was_cut_off_is_not_taken_for_one_of_an_earlier_validation(cut):
    """Both have the same id, and only the earlier one has begun an episode."""
    arguments = {"numbers": [5, 7]}
    earlier, _, first = play("herl_guess", ["5"], arguments)
    assert scores(first)["near"] == 1.0
    assert earlier.id in loaded("herl_guess", arguments)._episodes
    task = environment_rows("herl_guess", arguments, heldout_share=0).train[0]
    later = answer_of(cut, finish="length", id=earlier.id)
    found = asyncio.run(VerifiersJudge("herl_guess", arguments).judge(task, later))
    assert scores(found)["near"] == pytest.approx(0.1)


@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize(
    ("said", "thinking"), [("5", "It is odd."), ("<think>It is odd.</think>\n5", ""), ("5", "")]
)
def test_an_episode_is_found_with_and_without_the_thinking_that_a_judge_sees(said, thinking, strip):
    arguments = {"numbers": (5, 6), "trouble": ""}
    rollout, _, _ = play("herl_guess", ["9", said], arguments)
    task = environment_rows("herl_guess", arguments, heldout_share=0).train[0]
    with JudgeRunner(VerifiersJudge("herl_guess", arguments), strip_thinking=strip) as runner:
        judged = runner.submit(task, replace(rollout, thinking=thinking)).result(20)
    assert judged.judgement.reward is not None
    assert scores(judged.judgement)["near"] == (1.0 if said == "5" else 0.2)


def test_what_fails_while_a_stored_answer_is_played_is_of_the_environment():
    for trouble in ("raises", "exits", "gives_up"):
        judge = VerifiersJudge("herl_guess", {"trouble": trouble})
        task = environment_rows("herl_guess", {"trouble": trouble}, heldout_share=0).train[0]
        with pytest.raises(JudgeError) as found:
            asyncio.run(judge.judge(task, answer_of("7", id="stored")))
        assert found.value.cause == "environment"


def test_weights_and_limits_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="finite numbers, but 'herl_shop' gives 'right' the weight nan"):
        loaded("herl_shop", {"extra": "weight"})
    with pytest.raises(ConfigError, match=r"judge.met_at: expected a number in \(0, 1\], got 0"):
        VerifiersJudge("herl_shop", met_at=0)
