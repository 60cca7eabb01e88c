"""herl inspect finds what a plain search through all records finds."""

import json
import random

import pytest
from omegaconf import OmegaConf

from herl.errors import ConfigError, DataError
from herl.records.inspect import Query, find, inspect, show, word_diff
from herl.records.lines import answer_record, write_lines
from herl.testing import make_judged, make_rollout, make_task


def record(number, **changes):
    return {
        "id": f"0:0:0:t{number}/0", "task_id": f"t{number % 7}", "parent_id": None, "origin": "policy",
        "request": "Describe the otter.", "text": f"answer {number}", "reward": 0.5, "parent_reward": None,
        "policy_version": number // 10, "verdicts": [],
    } | changes  # fmt: skip


def written(folder, records, per_file=100):
    (folder / "records").mkdir(parents=True)
    for start in range(0, len(records), per_file):
        lines = [json.dumps(one) + "\n" for one in records[start : start + per_file]]
        (folder / "records" / f"answers-{start // per_file:05d}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def records():
    rng = random.Random(0)
    made = []
    for number in range(240):
        verdicts = [
            {"criterion_id": name, "criterion": name, "weight": 1.0, "met": True, "reason": "",
             "fulfilled": rng.choice([True, False, None])}
            for name in ("food", "length")
        ]  # fmt: skip
        reward = rng.choice([None, *(n / 4 for n in range(5))])
        made.append(record(number, reward=reward, verdicts=verdicts))
        if reward is not None and rng.random() < 0.5:
            made.append(
                record(number, id=f"0:0:0:t{number}/0/0", parent_id=f"0:0:0:t{number}/0", origin="hindsight",
                       reward=rng.random(), parent_reward=reward, verdicts=verdicts)
            )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def folder(records, tmp_path_factory):
    return written(tmp_path_factory.mktemp("run"), records, per_file=97)


def gain(one):
    return one["reward"] - one["parent_reward"]


NAIVE = {
    "best": (lambda r: r["reward"] is not None, lambda r: -r["reward"]),
    "worst": (lambda r: r["reward"] is not None, lambda r: r["reward"]),
    "improved": (lambda r: r["parent_reward"] is not None, lambda r: -gain(r)),
    "broken": (lambda r: r["parent_reward"] is not None, gain),
    "first": (lambda r: True, lambda r: 0),
}


@pytest.mark.parametrize("order", sorted(NAIVE))
@pytest.mark.parametrize("max_answers", [1, 5, 1000])
def test_orders_are_those_of_a_plain_sort(folder, records, order, max_answers):
    keep, rank = NAIVE[order]
    expected = sorted(filter(keep, records), key=rank)[:max_answers]  # ties: the earlier first
    assert [one.answer for one in find(folder, Query(order=order, max_answers=max_answers))] == expected


def test_the_last_come_last_first(folder, records):
    expected = records[::-1][:5]
    assert [one.answer for one in find(folder, Query(order="last"))] == expected


def test_answers_are_found_by_task_step_and_criterion(folder, records):
    query = Query(order="worst", max_answers=9, task="t3", steps=(2, 20), criterion="food")
    found = [one.answer["id"] for one in find(folder, query)]
    fits = [
        r
        for r in records
        if r["task_id"] == "t3" and 2 <= r["policy_version"] <= 20 and r["reward"] is not None
        and any(v["criterion_id"] == "food" and v["fulfilled"] is False for v in r["verdicts"])
    ]  # fmt: skip
    assert found == [r["id"] for r in sorted(fits, key=lambda r: r["reward"])[:9]]
    assert found


def test_a_revision_comes_with_its_draft_even_from_the_file_before(folder, records):
    by_id = {one["id"]: one for one in records}
    for one in find(folder, Query(order="improved", max_answers=1000)):
        assert one.draft == by_id[one.answer["parent_id"]]


def test_a_folder_without_records_and_a_broken_file_are_errors(tmp_path):
    with pytest.raises(DataError, match="expected the folder of a run with recorded answers"):
        find(tmp_path, Query())
    (tmp_path / "answers.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match=r"answers.jsonl: expected one JSON object per line"):
        find(tmp_path, Query())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "bset"}, "order: expected one of worst, best, .* got 'bset'"),
        ({"max_answers": 0}, "max_answers: expected a whole number of at least 1, got 0"),
        ({"max_answers": "ten"}, "max_answers: expected a whole number of at least 1, got ten"),
        ({"steps": 5}, "steps: expected the first and the last step, .* got 5"),
        ({"steps": ("a", "b")}, "steps: expected the first and the last step"),
        ({"steps": (1,)}, "steps: expected the first and the last step"),
    ],
)
def test_wrong_questions_get_clear_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        Query(**options)


def test_word_diff_tells_what_went_and_what_came():
    assert word_diff("It eats fish daily", "It now eats fish") == [
        ("same", "It"), ("new", "now"), ("same", "eats fish"), ("gone", "daily"),
    ]  # fmt: skip
    assert word_diff("", "") == []
    for before, after in (("a b", "b a"), ("", "x"), ("x", "")):
        changes = word_diff(before, after)
        assert " ".join(words for kind, words in changes if kind != "new") == before
        assert " ".join(words for kind, words in changes if kind != "gone") == after


def test_markup_in_answers_is_shown_literally(tmp_path, capsys):
    text = "[red]not red[/red] [link=http://x]y[/link]"
    verdict = {
        "criterion_id": "a",
        "criterion": "[b]x[/b]",
        "weight": 1.0,
        "fulfilled": False,
        "reason": text,
    }
    show(find(written(tmp_path, [record(0, text=text, verdicts=[verdict])]), Query(order="first")))
    shown = " ".join(capsys.readouterr().out.split())
    assert "[red]not" in shown
    assert "[b]x[/b] (1) [a]" in shown
    assert "after 0 optimizer steps" in shown


def test_where_nothing_fits_it_says_what_to_look_for(tmp_path, capsys):
    folder = written(tmp_path, [record(0)])
    query = {
        "order": "improved",
        "max_answers": 1,
        "task": None,
        "criterion": "fod",
        "steps": None,
        "json": False,
    }
    inspect(OmegaConf.create({"run": str(folder)} | query))
    said = capsys.readouterr().out
    assert "use order=worst or best for a run without hindsight" in said
    assert "the id of each criterion in brackets" in said


@pytest.mark.parametrize("tail", ['{"id": "0:0:0:t', "x" * 200_000])
def test_a_partial_line_left_by_a_killed_run_is_skipped(tmp_path, records, tail):
    folder = written(tmp_path / "run", records, per_file=97)
    expected = find(folder, Query(order="best", max_answers=7))
    newest = sorted((folder / "records").iterdir())[-1]
    with newest.open("a") as file:
        file.write(tail)
    assert find(folder, Query(order="best", max_answers=7)) == expected
    newest.write_text(tail)
    assert find(folder, Query(order="last", max_answers=1))[0].answer == records[len(records) // 97 * 97 - 1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"policy_version": None}, "policy_version"),
        ({"text": 3}, "text"),
        ({"verdicts": [{"criterion_id": "a", "fulfilled": True}]}, "verdicts.0.criterion"),
        ({"bonus": "x"}, "bonus"),
    ],
)
def test_a_foreign_record_is_one_error_with_line_and_field(tmp_path, changes, field):
    folder = written(tmp_path, [record(0, reward=0.1), record(1, **changes)])
    with pytest.raises(DataError, match=rf"answers-00000.jsonl:2: .*; {field}: "):
        find(folder, Query(order="best"))


def test_bytes_that_are_no_text_are_an_error_with_their_line(tmp_path):
    folder = written(tmp_path, [record(0, reward=0.1), record(1, reward=0.2, text="zebra")])
    [path] = folder.glob("**/answers*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"zebra", b"ze\xe3ra"))
    with pytest.raises(DataError, match=r"answers-00000.jsonl:2: expected one JSON object"):
        find(folder, Query(order="best"))


def test_no_escape_sequence_of_an_answer_reaches_the_terminal(tmp_path, capsys):
    evil = "\x1b]0;owned\x07\x9b31m\u202e"
    verdict = {"criterion_id": evil, "criterion": evil, "weight": 1.0, "fulfilled": True, "reason": evil}
    draft = record(0, text=evil, request=evil, origin=evil, verdicts=[verdict])
    revision = record(0, id="r", parent_id=draft["id"], parent_reward=0.1, text=f"x {evil}", fault=evil,
                      thinking=evil, task_id=evil, verdicts=[verdict])  # fmt: skip
    for order in ("first", "improved"):
        show(find(written(tmp_path / order, [draft, revision]), Query(order=order)))
    said = capsys.readouterr().out
    assert said.count("owned") > 5
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(said)


def test_half_a_surrogate_pair_is_not_recorded(tmp_path):
    task = make_task({"fish": 1.0})
    one = make_judged(0.5, met={"fish": True}, rollout=make_rollout("cut \ud83d", task_id=task.id))
    write_lines(tmp_path / "answers.jsonl", [answer_record(task, one)])
    assert find(tmp_path, Query(order="best"))[0].answer["text"] == "cut ?"
