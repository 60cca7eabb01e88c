import json
from dataclasses import replace

import numpy as np
import pytest

from herl import Criterion, DataError, Rubric
from herl.data import lint
from herl.data.lint import bad_rows, findings
from herl.data.sources import read_tasks
from herl.records.lines import read_records
from herl.testing import make_task

LONG = "Describe the otter and tell where it lives, what it eats and how it raises its young in the river."
HI = {"kind": "contains", "text": "hi"}
NESTED = r"^(\w+[\s.,]*)+!$"


def task(id, request=LONG, *criteria):
    made = make_task(id=id, request=request)
    return replace(made, rubric=Rubric(criteria=criteria)) if criteria else made


def kinds(*args, **settings):
    return [(one.level, one.kind, one.where) for one in findings(*args, **settings)]


def test_clean_data_gives_no_findings():
    assert kinds({"train": [task("a", "Describe the otter."), task("b", "What does a fox eat?")]}) == []


@pytest.mark.parametrize(
    ("criterion", "level", "kind"),
    [
        ({"text": "  "}, "error", "empty criterion"),
        ({"text": "Is kind.", "weight": 0.0}, "error", "zero weight"),
        ({"text": "Names the river and explains the tide."}, "warning", "compound criterion"),
        ({"text": "Does not advertise.", "weight": -1.0, "undesirable": True}, "warning", "polarity"),
        ({"text": "Fails to greet."}, "warning", "polarity"),
        ({"text": "Ends.", "check": {"kind": "regex", "pattern": NESTED}}, "warning", "nested quantifiers"),
        (
            {"text": "Ends.", "check": {"kind": "count", "of": {"regex": NESTED}}},
            "warning",
            "nested quantifiers",
        ),
        (
            {"text": "Ends.", "check": {"kind": "json", "schema": {"items": {"pattern": NESTED}}}},
            "warning",
            "nested quantifiers",
        ),
    ],
)
def test_doubtful_criteria(criterion, level, kind):
    bad = Criterion(id="c", **criterion)
    good = Criterion(id="d", text="Says hi.", weight=3.0, check=bad.check and HI)
    assert kinds({"train": [task("a", "Hi", bad, good)]}) == [(level, kind, "train:a:c")]


def test_criteria_without_a_check_beside_others_are_counted_once_for_each_split():
    """By default judge=rule leaves them out of the reward."""
    checked, bare = Criterion(id="c", text="Says hi.", check=HI), Criterion(id="d", text="Is kind.")
    splits = {
        "train": [task("a", "Hi", checked, bare), task("b", "Hello", checked, bare)],
        "heldout": [task("x", "Hey", checked), task("y", "Ho", bare)],
        "later": [task("z", "Hoho", checked)],
    }
    found = [one for one in findings(splits) if one.kind != "no weights"]
    assert [(one.level, one.kind, one.where) for one in found] == [
        ("warning", "no check", "train:a:d"),
        ("warning", "no check", "heldout:y:d"),
    ]
    assert [one.detail.partition(":")[0] for one in found] == [
        "2 of 4 criteria have none",
        "1 of 2 criteria have none",
    ]
    alone = kinds({"train": [task("a", "Hi", bare), task("b", "Hello", bare)]})
    assert "no check" not in {kind for _, kind, _ in alone}, "all need a model"


def test_criteria_that_only_look_doubtful_pass():
    good = [
        Criterion(id="a", text="Says salt and pepper."),
        Criterion(id="b", text="Does not advertise."),
        Criterion(id="c", text="Advertises.", weight=-1.0, undesirable=True),
        Criterion(id="d", text="Lists.", check={"kind": "regex", "pattern": r"(\w+,)+"}),
    ]
    assert [kind for _, kind, _ in kinds({"train": [task("a", "Hi", *good)]})] == ["no check"]


def test_a_criterion_that_stands_twice():
    twice = [Criterion(id="a", text="Is kind.", weight=2.0), Criterion(id="b", text="is  kind.")]
    assert kinds({"train": [task("a", "Hi", *twice)]}) == [("warning", "repeated criterion", "train:a")]


def test_data_in_which_all_weighs_the_same():
    same = [Criterion(id="a", text="Is kind."), Criterion(id="b", text="Is short.")]
    assert kinds({"train": [task("a", "Hi", *same)]}) == [("warning", "no weights", "train")]


def test_duplicates_near_duplicates_and_leaks():
    train = [
        task("a"),
        task("b", LONG.upper() + "!"),
        task("c", LONG + " Thanks."),
        task("d", "Something else here."),
    ]
    assert kinds({"train": train, "heldout": [task("h", "Something else here.")]}) == [
        ("error", "duplicate prompt in two splits", "heldout:h"),
        ("warning", "duplicate prompt", "train:b"),
        ("warning", "near-duplicate prompt", "train:c"),
    ]


def random_words(rng, count):
    return " ".join(f"w{number}" for number in rng.integers(0, 3000, count))


def test_a_system_prompt_that_all_share_makes_no_near_duplicates():
    rng = np.random.default_rng(0)
    system = {"role": "system", "content": random_words(rng, 150)}
    asked = [random_words(rng, 12) for _ in range(40)]
    tasks = [
        replace(task(str(place)), messages=(system, {"role": "user", "content": text}))
        for place, text in enumerate([*asked, asked[0] + " please"])
    ]
    [found] = findings({"train": tasks})
    assert (found.kind, found.where) == ("near-duplicate prompt", "train:40")
    assert found.detail.endswith("train:0")


def test_other_instructions_of_the_system_make_another_prompt():
    """The same question under two personas is no duplicate, but is worth a look."""
    told = [
        replace(
            task(name), messages=({"role": "system", "content": f"You are {name}."}, *task(name).messages)
        )
        for name in ("Ann", "Bob")
    ]
    assert kinds({"train": told}) == [("warning", "near-duplicate prompt", "train:Bob")]


class Counted(frozenset):
    """A set that counts its comparisons with others."""

    compared = 0

    def __and__(self, other):
        Counted.compared += 1
        return frozenset(self) & other


@pytest.mark.parametrize(("own", "pairs"), [(1, 399), (60, 0)])
def test_prompts_that_share_a_template_are_compared_with_few_others(monkeypatch, own, pairs):
    """All against all would take hours for a hundred thousand prompts."""
    monkeypatch.setattr(Counted, "compared", 0)
    rng = np.random.default_rng(0)
    places = [(str(n), Counted([*range(150), *rng.integers(1000, 1 << 31, own)])) for n in range(400)]
    assert len(list(lint._near(places))) == pairs
    assert 0 < Counted.compared < 40 * len(places)


def test_a_prompt_without_text_is_an_error():
    assert kinds({"train": [task("a", " \n"), task("b", "Hi")]}) == [("error", "empty prompt", "train:a")]


def test_prompts_that_are_too_long():
    found = findings(
        {"train": [task("a")]}, prompt_tokens=lambda t: len(t.request.split()), max_prompt_tokens=5
    )
    assert [(one.level, one.kind, one.detail) for one in found] == [
        ("error", "long prompt", "20 tokens exceed the limit of 5: it will be dropped")
    ]


def record(task_id, reward, origin="policy", **met):
    verdicts = [{"criterion_id": name, "met": value} for name, value in met.items()]
    return {"task_id": task_id, "reward": reward, "origin": origin, "verdicts": verdicts}


def test_records_show_what_says_nothing():
    records = [
        record("a", 0.5, fish=True, river=False, tide=None),
        record("a", 0.5, fish=True, river=True, tide=False),
        record("b", 0.1, fish=False),
        record("b", 0.2, fish=False),
        record("b", 1.0, origin="hindsight", fish=True),
    ]
    assert kinds({}, records=records) == [
        ("warning", "criterion always met", "records:a:fish"),
        ("warning", "criterion never met", "records:b:fish"),
        ("warning", "prompt without signal", "records:a"),
    ]


def test_records_and_bad_rows_are_read_from_a_runs_folder(tmp_path):
    with pytest.raises(DataError, match="expected the folder of a run with recorded answers"):
        list(read_records(tmp_path))
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "answers-00000.jsonl").write_text(json.dumps(record("a", 0.5)) + "\n")
    assert [one["task_id"] for one in read_records(tmp_path)] == ["a"]
    with pytest.raises(DataError, match="answers-00000.jsonl:1: expected an answer as a run records it; id:"):
        list(read_records(tmp_path, check=True))
    with (tmp_path / "records" / "answers-00000.jsonl").open("a") as file:
        file.write('{"task_id": "half a li')
    assert [one["task_id"] for one in read_records(tmp_path)] == ["a"]
    (tmp_path / "records" / "answers-00000.jsonl").write_text('{"task_id": "a"}\n?\n')
    with pytest.raises(DataError, match=r"answers-00000.jsonl:2: expected one JSON object per line"):
        list(read_records(tmp_path))
    (tmp_path / "bad_rows_train.jsonl").write_text(
        json.dumps({"place": "x:1", "error": "x:1: no prompt", "row": {}})
    )
    [finding] = bad_rows(tmp_path)
    assert (finding.level, finding.kind, finding.where) == ("error", "bad row", "x:1")
    assert finding.detail == "no prompt\n  the row: {}"


def test_a_prompt_that_the_model_cannot_read_is_a_finding_each():
    def tokens(task):
        if task.id == "b":
            raise DataError("prompt 'b': the model's chat template refuses the roles user: no")
        return 5

    tasks = [task("a", "Describe the otter."), task("b", "What does a fox eat?"), task("c", "Hi")]
    [found] = findings({"train": tasks}, prompt_tokens=tokens, max_prompt_tokens=9)
    assert (found.level, found.kind, found.where) == ("error", "unusable prompt", "train:b")
    assert found.detail.endswith("refuses the roles user: no")


def test_columns_that_no_field_takes_are_a_finding(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {
        "question": "Hi",
        "rubric": [{"description": "Says hi.", "weight": 5}, {"description": "Is kind.", "weight": 3}],
        "score": 3,
    }
    path.write_text(json.dumps(row) + "\n")
    [found] = findings({"train": read_tasks(path)})
    assert (found.level, found.kind, found.where) == ("warning", "unused columns", "train")
    assert "score" in found.detail
