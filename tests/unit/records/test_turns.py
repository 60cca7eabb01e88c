"""Records of episodes: what is written is read again, judged again and shown."""

import json
from dataclasses import replace

import pyarrow.json
import pytest
from datasets import load_dataset

from herl.errors import DataError
from herl.evaluation.evaluate import judge_again
from herl.judge import JudgeRunner
from herl.records.answers import recorded_answers
from herl.records.inspect import Found, show
from herl.records.lines import answer_record, checked, write_lines
from herl.records.turns import episode_facts, recorded_turns, side_by_side
from herl.testing import FakeJudge, make_judged, make_rollout, make_task
from herl.types import ToolCall, Turn
from tests.support.made_up_episodes import ARGUMENTS, an_episode

TASK = make_task(id="task")


def record(rollout, **changes):
    found = answer_record(TASK, make_judged(0.5, met={"fish": True}, rollout=rollout)) | changes
    return json.loads(json.dumps(found))


def test_a_record_holds_the_turns_before_the_last_with_their_sizes():
    found = record(an_episode())
    assert found["text"] == "It eats fish."
    assert found["tokens"] == 6
    first, second = found["turns"]
    assert first == {
        "text": "Look up otter.", "thinking": "Hm.", "tokens": 2, "thinking_tokens": 1, "reply_tokens": 2,
        "calls": [{"name": "lookup", "arguments": json.dumps(ARGUMENTS), "error": ""}],
        "reply": [{"role": "tool", "name": "lookup", "content": "otter: <b>fish</b>"}],
    }  # fmt: skip
    assert (second["tokens"], second["reply_tokens"]) == (3, 4)
    assert [call["error"] for call in second["calls"]] == ["malformed", ""]


def test_a_record_of_an_answer_in_one_turn_is_as_it_was():
    assert list(record(make_rollout())) == [
        "id", "task_id", "parent_id", "origin", "request", "text", "thinking", "has_answer", "tokens", "thinking_tokens",
        "finish_reason", "policy_version", "reward", "verdicts",
    ]  # fmt: skip


def test_turns_come_back_without_their_tokens():
    episode = an_episode()
    read = recorded_turns(record(episode))
    assert read == tuple(replace(turn, end=0, reply_ids=(), thinking_tokens=0) for turn in episode.turns)
    assert recorded_turns({"text": "fish"}) == ()
    assert recorded_turns({"text": "fish", "turns": None}) == (), "as Arrow writes what is missing"


def test_a_judge_that_is_asked_again_gets_the_same_transcript(tmp_path):
    seen = []

    class FakeReader(FakeJudge):
        async def judge(self, task, rollout):
            seen.append((rollout.transcript, rollout.text, rollout.finish_reason))
            return await super().judge(task, rollout)

    episode = an_episode(finish_reason="turns")
    write_lines(tmp_path / "records" / "answers-00000.jsonl", [record(episode)])
    found = recorded_answers(tmp_path, [TASK])
    judge_again(JudgeRunner(FakeReader()), found.tasks, found.rollouts)
    assert seen == [(episode.transcript, "It eats fish.", "turns")]


def test_an_answer_whose_environment_failed_is_left_out(tmp_path):
    path = tmp_path / "answers.jsonl"
    failed = record(an_episode(finish_reason="failed"), id="failed")
    write_lines(path, [record(an_episode()), failed])
    found = recorded_answers(path, [TASK])
    assert (len(found.rollouts), found.left_out) == (1, {"failed": 1})
    write_lines(path, [failed])
    with pytest.raises(DataError, match="0 have no answer, of 1 the environment failed"):
        recorded_answers(path, [TASK])


@pytest.mark.parametrize(
    ("turns", "field"),
    [
        ([{"thinking": ""}], "turns.0.text"),
        ([{"text": "a", "reply": [{"role": "tool"}]}], "turns.0.reply.0.content"),
        ([{"text": "a", "calls": [{"name": "f", "arguments": "[1]"}]}], "turns.0.calls.0.arguments"),
        ([{"text": "a", "calls": [{"name": "f", "arguments": "{"}]}], "turns.0.calls.0.arguments"),
        ("three", "turns"),
    ],
)
def test_turns_that_are_none_are_an_error_with_their_place(tmp_path, turns, field):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(record(make_rollout()) | {"turns": turns}) + "\n")
    with pytest.raises(DataError, match=rf"answers.jsonl:1: .*{field}: "):
        recorded_answers(path, [TASK])
    with pytest.raises(DataError, match=rf"here: .*{field}: "):
        checked(json.loads(path.read_text()), "here")


def test_other_programs_read_records_with_arguments_of_all_types(tmp_path):
    path = tmp_path / "answers.jsonl"
    other = replace(an_episode().turns[0], calls=(ToolCall(name="f", arguments={"name": ["\ud800", 1]}),))
    write_lines(path, [record(an_episode()), record(make_rollout(turns=[other]))])
    assert pyarrow.json.read_json(path).num_rows == 2
    read = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert [
        json.loads(turn["calls"][0]["arguments"])["name"] for turn in (row["turns"][0] for row in read)
    ] == [
        "otter",
        ["?", 1],
    ]


def test_draft_and_revision_stand_turn_by_turn_and_their_last_turns_together():
    first, second = an_episode().turns
    rows = side_by_side(((first,), "river"), ((first, second), "fish"))
    assert [(row.label, row.before, row.after) for row in rows] == [
        ("turn 1", "Look up otter.", "Look up otter."),
        ("reply 1", *["[tool lookup]\notter: <b>fish</b>"] * 2),
        ("turn 2", "", "Look up."),
        ("reply 2", "", "a call failed: malformed\n[tool]\nwhat?\x1b[31m\n\n[user]\nGo on."),
        ("last turn", "river", "fish"),
    ]
    assert [(row.label, row.before, row.after) for row in side_by_side(((), "a"), ((), "b"))] == [
        ("", "a", "b")
    ]


@pytest.mark.parametrize(
    ("turns", "reason", "said"),
    [
        (an_episode().turns, "stop", "3 turns, 3 calls (1 failed)"),
        (an_episode().turns, "length", "3 turns, 3 calls (1 failed), cut off at a limit on tokens"),
        (
            [Turn(text="", end=1, reply=(), reply_ids=())],
            "seconds",
            "2 turns, cut off at the limit on seconds",
        ),
        ((), "failed", "the environment failed"),
        ((), "turns", "cut off at the limit on turns"),
        ((), "length", ""),
        ((), "stop", ""),
        ((), "None", ""),  # old records
    ],
)
def test_an_episode_in_words(turns, reason, said):
    assert episode_facts(turns, reason) == said


def test_inspect_shows_turns_and_no_escape_sequence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    draft = record(make_rollout("river"), parent_reward=None)
    revision = record(an_episode(), parent_reward=0.5, origin="hindsight")
    show([Found(answer=revision), Found(answer=revision, draft=draft)])
    alone, beside = capsys.readouterr().out.split("Describe the otter.")[1:]
    for shown in (alone, beside):
        assert "\x1b" not in shown
        assert max(map(len, shown.splitlines())) <= 80
        assert "3 turns, 3 calls (1 failed)" in shown
        assert "thinking in turn 1: Hm." in shown
        rows = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
        assert [label for label in rows if label.startswith(("turn", "reply", "last"))] == [
            "turn 1", "reply 1", "turn 2", "reply 2", "last turn",
        ]  # fmt: skip
        assert "[tool lookup]" in shown
        assert "a call failed: malformed" in shown
    last = next(line for line in beside.splitlines() if "last turn" in line)
    assert [cell.strip() for cell in last.split("│")[2:4]] == ["river", "It eats fish."]
