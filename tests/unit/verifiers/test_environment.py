"""Calls and tools of environments of the package `verifiers`, and what goes wrong in them."""

import json
import time

import pytest

from herl.environment import Conversation
from herl.environment.runner import EnvironmentRunner
from herl.errors import ConfigError, DataError, JudgeError
from tests.support.verifiers_play import PRICE, installed, play, scores

pytest.importorskip("verifiers")
from herl.verifiers.data import environment_rows
from herl.verifiers.environment import VerifiersEnvironment
from herl.verifiers.loading import loaded


@pytest.fixture(scope="module", autouse=True)
def rooms(tmp_path_factory):
    with installed(tmp_path_factory.mktemp("rooms")):
        yield


def test_two_calls_with_the_same_id_are_two_calls():
    calls = [
        {"id": "abcdefghi", "name": "price", "arguments": {"fruit": fruit}} for fruit in ("apple", "pear")
    ]
    text = "[TOOL_CALLS]" + json.dumps(calls)
    _, steps, judgement = play("herl_shop", [text, "It is 7."], limits={"format": "mistral"})
    first, second = steps[0].reply.messages
    assert [first["content"], second["content"]] == ["7", "12"]
    assert first["tool_call_id"] != second["tool_call_id"]
    assert len(steps[0].reply.calls) == 2
    assert judgement.reward == 1.0


@pytest.mark.parametrize("trouble", ["no_setup", "exits", "cancels", "is_silent"])
def test_whatever_an_environment_does_ends_the_episode_alone(trouble):
    rollout, _, _ = play("herl_guess", ["7", "5"], {"trouble": trouble})
    assert rollout.finish_reason == "failed"


def test_an_episode_whose_setup_takes_too_long_abstains():
    with pytest.raises(JudgeError, match="^it never began"):
        play("herl_guess", ["5"], {"trouble": "long_setup"}, limits={"max_seconds": 0.2})


def test_tools_are_those_of_the_row_and_an_episode_with_others_ends_the_run():
    found = loaded("herl_shop")
    tool = {"name": "peek", "description": "Peeks.", "parameters": {"type": "object"}}
    assert [one["function"]["name"] for one in found.tools({})] == ["price"]
    assert [one["function"] for one in found.tools({"info": {"tool_defs": [tool]}})] == [tool]
    assert [one["function"] for one in found.tools({"info": json.dumps({"tool_defs": [tool]})})] == [tool]
    assert found.tools({"info": {"tool_defs": []}}) == []  # as the package: the row says that it has none
    for info in ("{", {"tool_defs": [{"name": "peek"}]}):
        with pytest.raises(DataError, match="info: expected JSON, and tools"):
            found.tools({"info": info})
    with pytest.raises(ConfigError, match="the tools of their row, none, but 'herl_guess' .* peek"):
        play("herl_guess", ["7", "5"], {"trouble": "sets_tools"})


def test_the_policys_way_with_tools_is_that_of_the_first_row_that_has_some(monkeypatch):
    from datasets import Dataset

    found = loaded("herl_guess", {"numbers": (9,)})
    tool = {"name": "peek", "description": "Peeks.", "parameters": {"type": "object"}}
    infos = ["{}", json.dumps({"tool_defs": [tool]})]
    monkeypatch.setattr(found.environment, "dataset", Dataset.from_list([{"info": one} for one in infos]))
    assert [one["function"]["name"] for one in found.first_tools()] == ["peek"]
    assert loaded("herl_guess").first_tools() == []


def test_an_end_does_not_wait_for_rewards_that_ignore_that_they_were_stopped(monkeypatch):
    monkeypatch.setattr("herl.background.loop.STOP_SECONDS", 0.2)
    monkeypatch.setattr("herl.environment.runner.END_SECONDS", 0.2)
    arguments = {"extra": "slow"}
    loaded("herl_shop", arguments).judged = True
    environment = VerifiersEnvironment("herl_shop", arguments)
    task = environment_rows("herl_shop", arguments).train[0]
    runner = EnvironmentRunner(environment)
    runner.open()
    conversation = Conversation(id="slow", task=task, messages=task.messages)
    assert runner.step(conversation, "7", 0.0).result(20).reply is None
    started = time.monotonic()
    runner.close()
    assert time.monotonic() - started < 5


def test_a_finished_episode_keeps_its_scores_alone():
    _, _, judgement = play("herl_shop", [PRICE % "apple", "It is 7."], {"count": 2})
    assert scores(judgement)["looked_it_up"] == 1.0
    [episode] = loaded("herl_shop", {"count": 2})._episodes.values()
    assert episode._state is None
    assert episode._loop is None
    assert not episode._row
    assert not episode._prompt
