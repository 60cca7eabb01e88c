"""Recorded answers find their tasks again, whoever wrote them."""

import json
from dataclasses import replace

import pytest

from herl.errors import DataError
from herl.records.answers import human_verdicts, recorded_answers, some_answers
from herl.records.lines import answer_record, write_lines
from herl.testing import make_judged, make_rollout, make_task

TASKS = [make_task(id=f"t{n}", request=f"Describe {n}.") for n in range(3)]


def written(folder, *records, name="answers.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def test_a_run_s_records_find_their_tasks(tmp_path):
    judged = [
        make_judged(1.0, met={"fish": True}, rollout=make_rollout("fish", id=f"g/{n}", task_id="t1"))
        for n in range(2)
    ]
    write_lines(
        tmp_path / "records" / "answers-00000.jsonl", [answer_record(TASKS[1], one) for one in judged]
    )
    found = recorded_answers(tmp_path, TASKS)
    assert found.tasks == (TASKS[1], TASKS[1])
    assert [(one.id, one.text, one.group_id) for one in found.rollouts] == [
        ("g/0", "fish", "t1"),
        ("g/1", "fish", "t1"),
    ]


def test_a_replayed_answer_counts_once(tmp_path):
    first = make_judged(1.0, rollout=make_rollout("fish", id="g/0", task_id="t1"))
    again = replace(first, rollout=replace(first.rollout, origin="replay"))
    path = tmp_path / "records" / "answers-00000.jsonl"
    write_lines(path, (answer_record(TASKS[1], one) for one in (first, again)))
    assert [one.id for one in recorded_answers(tmp_path, TASKS).rollouts] == ["g/0"]


@pytest.mark.parametrize(
    ("record", "id"),
    [
        ({"prompt": "Describe 1.", "response": "fish"}, "1"),
        ({"request": "Describe 1.", "text": "fish", "id": 7}, "7"),
        ({"task_id": "t1", "answer": "fish", "id": "x"}, "x"),
        ({"task_id": "t1", "request": "Describe 1.", "completion": "fish"}, "1"),
    ],
)
def test_an_answer_in_a_file_names_its_task_by_id_or_request(tmp_path, record, id):
    found = recorded_answers(written(tmp_path, record), [*TASKS, TASKS[1]])  # in both splits
    assert (found.tasks, found.rollouts[0].text, found.rollouts[0].id) == ((TASKS[1],), "fish", id)


def test_what_cannot_be_judged_again_is_counted(tmp_path):
    path = written(
        tmp_path,
        {"request": "Describe 1.", "text": "fish"},
        {"request": "Something else.", "text": "fish"},
        {"request": "Describe 2.", "text": "fish", "task_id": "t1"},  # the data has changed since
        {"request": "Describe 2.", "text": "", "has_answer": False},
    )
    found = recorded_answers(path, TASKS)
    assert (len(found.rollouts), found.left_out) == (1, {"no_task": 2, "no_answer": 1})


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": "fish"}], "expected task_id, request or prompt"),
        ([{"request": "Describe 1."}], "expected one of text, response"),
        ([{"request": "Describe 1.", "text": "a", "response": "b"}], "expected one of text, response"),
        ([["fish"]], "expected a JSON object"),
        ([{"request": "Describe 1.", "text": "a", "id": "x"}] * 2, "expected a new id"),
        ([{"request": "Else.", "text": "a"}], "none of .* is one .1 have another prompt"),
    ],
)
def test_what_is_no_answer_is_an_error_with_its_place(tmp_path, records, message):
    with pytest.raises(DataError, match=message):
        recorded_answers(written(tmp_path, *records), TASKS)
    with pytest.raises(DataError, match="there is no"):
        recorded_answers(tmp_path / "nothing", TASKS)


def answers(tmp_path):
    records = [{"task_id": f"t{n % 3}", "text": f"{n}", "id": f"a{n}"} for n in range(12)]
    return recorded_answers(written(tmp_path, *records), TASKS)


def test_some_answers_are_spread_over_prompts_and_those_that_people_judged_come_first(tmp_path):
    every = answers(tmp_path)
    ids = lambda **how: [one.id for one in some_answers(every, **how).rollouts]  # noqa: E731
    assert ids(max_prompts=3, answers_per_prompt=4) == [f"a{n}" for k in range(3) for n in range(k, 12, 3)]
    assert ids(max_prompts=2, answers_per_prompt=2) == ["a0", "a6", "a1", "a7"]
    assert ids(max_prompts=1, answers_per_prompt=2, first=frozenset({"a8"})) == ["a8", "a2"]


@pytest.mark.parametrize(
    "verdicts",
    [
        {"fish": True, "river": None},
        [{"criterion_id": "fish", "met": True}, {"criterion_id": "river", "met": None}],
    ],
)
def test_people_s_verdicts_are_those_of_an_answer(tmp_path, verdicts):
    path = written(
        tmp_path,
        {"id": "a1", "verdicts": verdicts},
        {"id": "gone", "verdicts": {"x": True}},
        name="people.jsonl",
    )
    assert human_verdicts(path, answers(tmp_path)) == {("a1", "fish"): True, ("a1", "river"): None}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"id": "a1", "verdicts": {"fin": True}},
            r"people.jsonl:1: expected criteria of its answer \(fish, river\)",
        ),
        ({"id": "a1", "verdicts": {"fish": 1}}, "expected true, false or null, got 1"),
        ({"verdicts": {"fish": True}}, '"verdicts"'),
        ({"id": "b", "verdicts": {"fish": True}}, "has none of them"),
    ],
)
def test_other_verdicts_of_people_are_errors(tmp_path, record, message):
    with pytest.raises(DataError, match=message):
        human_verdicts(written(tmp_path, record, name="people.jsonl"), answers(tmp_path))
