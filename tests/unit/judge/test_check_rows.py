from dataclasses import replace

import pytest

from herl import DataError, Rubric
from herl.data.sources import ListedTasks
from herl.judge.check_rows import check_rows
from herl.judge.function import FunctionJudge
from herl.judge.instruction_following import InstructionFollowingJudge
from herl.judge.mix import RoutedJudge, WeightedJudges
from herl.judge.rule import RuleJudge
from herl.testing import FakeJudge, make_task

WORDS = {"kind": "max_words", "count": 9}
COMMA = {"kind": "instruction", "instruction_id": "punctuation:no_comma", "kwargs": {}}
OWN = {"kind": "x-mine"}
FOREIGN_FUNCTION = {"kind": "python", "path": "os.getcwd"}


def rows(*checks, names="abcdef"):
    """One row for each tuple of checks."""
    task = make_task()
    tasks = ListedTasks()
    tasks.path = "rows.jsonl"
    for name, of_row in zip(names, checks, strict=False):
        criteria = tuple(
            replace(c, check=check) for c, check in zip(task.rubric.criteria, of_row, strict=True)
        )
        tasks.append(replace(task, id=name, rubric=Rubric(criteria=criteria)))
    return tasks


def mix(default="rule"):
    return RoutedJudge(
        {"rule": RuleJudge(), "instruction": InstructionFollowingJudge(), "model": FakeJudge()},
        {"instruction": "instruction"},
        default,
    )


@pytest.mark.parametrize(
    ("judge", "checks", "message"),
    [
        (RuleJudge, (None, None), "criterion 'fish' has no check"),
        (RuleJudge, (COMMA, OWN), "criterion 'fish' has a check that cannot be applied: .*'instruction'"),
        (RuleJudge, (FOREIGN_FUNCTION, OWN), "expected a function from one of judge.python_modules"),
        (
            InstructionFollowingJudge,
            (None, WORDS),
            "criterion 'fish': expected a check of the kind 'ins.*no check",
        ),
        (mix, (None, None), "judge 'rule': criterion 'fish' has no check"),
        (lambda: mix(None), (None, WORDS), "criterion 'fish': no route leads to a judge"),
        (lambda: WeightedJudges({"a": RuleJudge()}), (None, OWN), "judge 'a': criterion 'fish' has no check"),
    ],
)
def test_rows_that_no_judge_can_judge_are_named_with_what_fits_them(judge, checks, message):
    with pytest.raises(DataError, match=rf"rows.jsonl, row 'a': .*{message}(.|\n)*judge=(llm|mix)"):
        check_rows({"train": rows(checks)}, judge())


@pytest.mark.parametrize(
    ("judge", "checks"),
    [
        (RuleJudge, (WORDS, WORDS)),
        (InstructionFollowingJudge, (COMMA, WORDS)),
        (mix, (COMMA, WORDS)),
        (lambda: mix("model"), (None, COMMA)),
        (FakeJudge, (None, None)),
        (lambda: FunctionJudge(lambda task, text: 1.0), (None, None)),
    ],
)
def test_rows_that_fit_pass_without_a_word(judge, checks, caplog):
    check_rows({"train": rows(checks), "heldout": ()}, judge())
    assert not caplog.text


@pytest.mark.parametrize(
    ("judge", "told"),
    [(RuleJudge, "row 'a': criterion 'fish' has no check. It always abstains"), (mix, "row 'a'")],
)
def test_a_criterion_that_always_abstains_is_told_once(judge, told, caplog):
    other = COMMA if judge is mix else WORDS
    check_rows({"train": rows((None, other), (None, other))}, judge())
    assert told in caplog.text
    assert len(caplog.records) == 1 + (judge is mix and "rule" not in caplog.text)


def test_three_rows_are_named_and_the_same_row_of_two_splits_counts_once():
    tasks = rows(*[(None, None)] * 5, (WORDS, WORDS))
    with pytest.raises(DataError) as caught:
        check_rows({"train": tasks, "heldout": tasks}, RuleJudge())
    lines = str(caught.value).splitlines()
    assert lines[0] == "judge: RuleJudge cannot judge 5 of 6 rows:"
    assert [line.partition(":")[0] for line in lines[1:4]] == [
        f"  rows.jsonl, row '{name}'" for name in "abc"
    ]
    assert lines[4] == "  and 2 more"
    assert lines[5].startswith("judge=rule applies the checks")


def test_a_row_without_a_rubric_fits_only_a_function_that_returns_a_number():
    task = replace(make_task(), rubric=Rubric(criteria=()))
    for judge in (RuleJudge(), InstructionFollowingJudge(), mix(), FakeJudge()):
        with pytest.raises(DataError, match="it has no rubric(.|\n)*judge=function"):
            check_rows({"train": [task]}, judge)
    check_rows({"train": [task]}, FunctionJudge(lambda task, text: 0.5))
