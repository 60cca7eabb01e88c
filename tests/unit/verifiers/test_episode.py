"""Environments of the package `verifiers`: their rows, their episodes, and the rewards of these."""

import asyncio
import json
import signal
import sys

import pytest

from herl.environment import Conversation
from herl.errors import ConfigError, DataError, JudgeError
from herl.types import Turn
from tests.support.verifiers_play import PRICE, answer_of, installed, play, scores

pytest.importorskip("verifiers")
from herl.verifiers.data import environment_rows
from herl.verifiers.environment import VerifiersEnvironment
from herl.verifiers.judge import VerifiersJudge
from herl.verifiers.loading import loaded


@pytest.fixture(scope="module", autouse=True)
def rooms(tmp_path_factory):
    with installed(tmp_path_factory.mktemp("rooms")):
        yield


def naive(name, answers, arguments=None, place=0):
    """What `verifiers` itself says, with its own loop and a client that gives these answers."""
    import verifiers as vf
    from verifiers.types import Response, ResponseMessage, ToolCall

    class Given(vf.Client):
        setup_client = to_native_tool = to_native_prompt = get_native_response = None
        raise_from_native_response = from_native_response = close = None

        async def get_response(self, prompt, **more):
            text = left.pop(0)
            call = json.loads(text[11:-12]) if text.startswith("<tool_call>") else None
            calls = call and [ToolCall(id="1", name=call["name"], arguments=json.dumps(call["arguments"]))]
            message = ResponseMessage(
                content=text, tool_calls=calls, finish_reason="stop", is_truncated=False
            )
            return Response(id="", created=0, model="", message=message)

    left = list(answers)
    environment = vf.load_environment(name, **(arguments or {}))

    async def run():
        state = await environment.rollout(environment.get_dataset()[place], Given(None), "m")
        await environment.rubric.score_rollout(state)
        return state

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "answers", "place"),
    [
        ("herl_shop", [PRICE % "apple", "It is 7."], 0),
        ("herl_shop", [PRICE % "pear", PRICE % "apple", "IT IS 7."], 0),
        ("herl_shop", ["12 I guess"], 1),
        ("herl_guess", ["9", "1", "5"], 0),
        ("herl_guess", ["nothing", "8"], 1),
    ],
)
def test_an_episode_earns_what_the_package_itself_gives(name, answers, place):
    rollout, steps, judgement = play(name, answers, place=place)
    state = naive(name, answers, place=place)
    assert steps[-1].reply is None
    assert rollout.finish_reason == "stop"
    weights = {one.id: one.weight for one in loaded(name).rubric.criteria}
    assert scores(judgement) == {one: state["metrics"][one] for one in weights}
    assert sum(weights[one] * score for one, score in scores(judgement).items()) == pytest.approx(
        state["reward"]
    )
    heard = [one["content"] for turn in rollout.turns for one in turn.reply]
    told = [one["content"] for one in state["completion"] if one["role"] in ("tool", "user")]
    assert heard == told[: len(heard)]
    assert len(heard) >= len(answers) - 1


def test_rows_become_tasks_with_the_reward_functions_as_their_rubric():
    data = environment_rows("herl_shop")
    assert [task.id for task in data.train] == ["train-1", "train-2", "train-3"]
    assert [task.id for task in data.heldout] == ["eval-1"]
    task = data.train[1]
    assert task.messages == (
        {"role": "system", "content": "You keep a shop."},
        {"role": "user", "content": "What is the price of a pear?"},
    )
    assert task.meta["answer"] == "12" and task.meta["info"] == {"fruit": "pear"}  # noqa: PT018
    found = {one.id: (one.text, one.weight, one.undesirable) for one in task.rubric.criteria}
    assert found == {
        "looked_it_up": ("Looks the fruit up before it answers.", 1.0, False),
        "right": ("right", 2.0, False),
        "shouts": ("Shouts.", -1.0, True),
    }
    assert not environment_rows("herl_guess", heldout_share=0).heldout


def test_tools_are_shown_without_the_arguments_that_the_environment_fills_in():
    environment = VerifiersEnvironment("herl_shop")
    opening = environment.start(environment_rows("herl_shop").train[0])
    [tool] = opening.tools
    assert tool["function"]["name"] == "price"
    assert list(tool["function"]["parameters"]["properties"]) == ["fruit"]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (PRICE % "lychee", "", "sold out"),
        ('<tool_call>{"name": "prize", "arguments": {}}</tool_call>', "unknown", "prize"),
        ('<tool_call>{"name": </tool_call>', "malformed", "Expecting value"),
    ],
)
def test_a_call_that_fails_is_a_message_to_the_policy(text, error, said):
    _, steps, judgement = play("herl_shop", [text, "7"])
    [message] = steps[0].reply.messages
    assert message["role"] == "tool"
    assert said in message["content"]
    assert [one.error for one in steps[0].reply.calls] == [error]
    assert judgement.reward == pytest.approx(2 / 3)


def test_an_answer_that_was_cut_off_ends_the_episode_and_is_scored_without_a_further_reply():
    _, _, first = play("herl_guess", ["5"], cut_off=True)
    assert scores(first) == {"near": pytest.approx(0.1), "words": 1.0}  # the guess was never taken
    _, _, later = play("herl_guess", ["7", "5"], cut_off=True)
    assert scores(later) == {"near": pytest.approx(1 / 3), "words": 1.0}
    _, steps, late = play("herl_guess", ["7", "6"])  # a reply that was not taken: too many turns
    assert steps[-1].reply is not None
    assert scores(late)["near"] == 0.5
    environment = loaded("herl_guess").environment
    assert [one for one, _ in environment.released[-2:]] == ["prompt_too_long", "prompt_too_long"]


def test_what_goes_wrong_in_the_environment_ends_the_episode_alone():
    for trouble in ("raises", "gives_up"):
        rollout, _, _ = play("herl_guess", ["7", "5"], {"trouble": trouble})
        assert rollout.finish_reason == "failed"
    rollout, _, judgement = play("herl_guess", ["7", "5"], {"trouble": "hangs"}, limits={"max_seconds": 0.5})
    assert rollout.finish_reason == "seconds"
    assert scores(judgement) == {"near": pytest.approx(0.1), "words": 1.0}
    assert loaded("herl_guess", {"trouble": "hangs"}).environment.released == [(None, [])]


@pytest.mark.parametrize(
    ("trouble", "message"), [("rewrites", "rewrites earlier"), ("changes", "setup_state")]
)
def test_an_environment_that_changes_what_was_said_ends_the_run(trouble, message):
    with pytest.raises(ConfigError, match=message):
        play("herl_guess", ["7", "5"], {"trouble": trouble})


def test_a_reward_that_raises_or_leaves_its_range_abstains_and_never_counts_as_0():
    _, _, broken = play("herl_shop", [PRICE % "apple", "7"], {"extra": "raises"})
    assert {one.criterion_id: one.met for one in broken.verdicts}["broken"] is None
    assert broken.reward == 1.0
    assert broken.usage["abstained_function"] == 1
    _, _, wide = play("herl_shop", [PRICE % "apple", "7"], {"extra": "wide"})
    assert scores(wide)["length"] is None
    _, _, mapped = play(
        "herl_shop", [PRICE % "apple", "7"], {"extra": "wide"}, ranges={"length": [-1.5, 0.5]}
    )
    assert scores(mapped)["length"] == pytest.approx(0.5)


def test_stored_answers_of_one_turn_can_be_judged_and_others_say_why_not():
    judge = VerifiersJudge("herl_shop")
    task = environment_rows("herl_shop").train[0]
    assert scores(asyncio.run(judge.judge(task, answer_of("7")))) == {
        "looked_it_up": 0.0, "right": 1.0, "shouts": 0.0,
    }  # fmt: skip
    turn = Turn(text="a", end=0, reply=({"role": "user", "content": "b"},), reply_ids=())
    with pytest.raises(JudgeError, match="played in this process"):
        asyncio.run(judge.judge(task, answer_of("7", [turn])))


def test_an_id_that_comes_again_is_another_episode():
    _, _, first = play("herl_guess", ["9", "5"])
    conversation_id = f"herl_guess{['9', '5']}{{}}"
    judge, task = VerifiersJudge("herl_guess"), environment_rows("herl_guess").train[0]
    again = asyncio.run(judge.judge(task, answer_of("cut", finish="length", id=conversation_id)))
    assert scores(first)["near"] == 1.0
    assert scores(again)["near"] == pytest.approx(0.1)


def test_an_environment_is_loaded_once_and_leaves_the_signals_alone():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    one = loaded("herl_guess", {"numbers": (3,)})
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert loaded("herl_guess", {"numbers": (3,)}) is one
    assert loaded("herl_guess", {"numbers": (4,)}) is not one


def test_without_a_judge_of_the_environment_nothing_is_kept(monkeypatch):
    one = loaded("herl_guess", {"numbers": (2,)})
    task = environment_rows("herl_guess", {"numbers": (2,)}, heldout_share=0).train[0]
    conversation = Conversation(
        id="a", task=task, messages=(*task.messages, {"role": "assistant", "content": "2"})
    )
    one.begun(conversation)
    assert one.ended(conversation) is not None
    assert not one._episodes


def test_only_modules_that_the_user_allowed_are_imported(tmp_path, monkeypatch):
    (tmp_path / "herl_stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("herl_stranger", "herl-stranger", "someone/herl-stranger"):
        with pytest.raises(ConfigError, match="HERL_ALLOW_TARGETS=herl_shop,herl_guess,herl_stranger"):
            loaded(name)
    assert "herl_stranger" not in sys.modules
    for name in ("../herl_shop", "os;x", 3):
        with pytest.raises(ConfigError, match="an environment's name"):
            loaded(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"extra": "group"}, "answers of a group"), ({"wrong": 1, "count": "x"}, "loading 'herl_shop' failed")],
)
def test_what_an_environment_asks_for_and_herl_leaves_out_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        loaded("herl_shop", arguments)


def test_a_misspelled_argument_is_named():
    known = "expected an argument of load_environment, one of trouble, numbers. Did you mean 'numbers'"
    with pytest.raises(ConfigError, match=f"data.arguments.numbersx: {known}"):
        loaded("herl_guess", {"numbersx": (3,)})


@pytest.mark.parametrize(
    "line", ["raise RuntimeError('on purpose')", "raise SystemExit(3)", "import no_such"]
)
def test_a_module_that_cannot_be_imported_is_one_line_of_error(tmp_path, monkeypatch, line):
    (tmp_path / "herl_broken.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "herl_broken")
    with pytest.raises(ConfigError, match="data.name: cannot import 'herl_broken.load_environment'") as found:
        loaded("herl-broken")
    assert "\n" not in str(found.value)


def test_mistakes_of_a_setting_are_named():
    with pytest.raises(ConfigError, match="judge.ranges.rihgt: expected one of .* Did you mean 'right'"):
        VerifiersJudge("herl_shop", ranges={"rihgt": [0, 2]})
    with pytest.raises(ConfigError, match=r"judge.ranges.right: expected \[lowest, highest\]"):
        VerifiersJudge("herl_shop", ranges={"right": [2, 0]})
    task = environment_rows("herl_shop").train[0]
    with pytest.raises(DataError, match="a row of data=verifiers"):
        VerifiersJudge("herl_shop").check_task(opened_elsewhere(task))


def opened_elsewhere(task):
    from dataclasses import replace

    return replace(task, meta={})
