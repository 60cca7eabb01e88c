import asyncio
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from herl import ConfigError, DataError, JudgeError, Judgement, Rubric
from herl.judge import JudgeRunner
from herl.judge.function import FunctionJudge
from herl.testing import check_judge, make_rollout, make_task

TASK = make_task()


def by_word(task, text):
    return {criterion.id: criterion.id in text for criterion in task.rubric.criteria}


async def later(task, text):
    return {"fish": 0.5, "river": None}


def length(task, text) -> float:
    return min(1.0, len(text) / 10)


def crashes(task, text):
    return {"fish": 1 / 0}


def wrong(task, text):
    return {"fish": "yes", "river": True}


def judge_one(function, text="fish", needs_verdicts=False):
    with JudgeRunner(FunctionJudge(function), needs_verdicts=needs_verdicts) as runner:
        return runner.submit(TASK, make_rollout(text)).result().judgement


def test_verdicts_by_criterion_id():
    judgement = judge_one(by_word)
    assert [verdict.met for verdict in judgement.verdicts] == [True, False]
    assert judgement.reward == pytest.approx(0.6)
    check_judge(FunctionJudge(by_word))


def test_coroutines_grades_and_abstentions():
    judgement = judge_one(later)
    assert [(v.met, v.score) for v in judgement.verdicts] == [(False, 0.5), (None, None)]
    assert judgement.reward == 0.5


def test_one_number_is_a_reward_without_verdicts():
    judge = FunctionJudge(length)
    judge.check_task(TASK)
    assert judge.holistic
    assert check_judge(judge).reward == 0.4
    judgement = judge_one(length)
    assert (judgement.reward, judgement.verdicts) == (0.4, ())


def test_a_number_where_hindsight_needs_verdicts_abstains():
    judgement = judge_one(lambda task, text: 0.4, needs_verdicts=True)
    assert judgement.reward is None
    assert "expected one verdict for each of ['fish', 'river'], got []" in judgement.verdicts[0].reason


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (crashes, "tests.unit.judge.test_function.crashes raised ZeroDivisionError: division by zero"),
        (wrong, "expected True, False, None or a number in [0, 1] for 'fish', got 'yes'"),
        (lambda task, text: "fine", "expected a number or verdicts by criterion id, got str"),
        (
            lambda task, text: {"fish": True},
            "expected one verdict for each of ['fish', 'river'], got ['fish']",
        ),
        (lambda task, text: float("nan"), "expected a finite reward, got nan"),
    ],
)
def test_what_goes_wrong_in_a_function_is_told_as_its_own_and_abstains(function, message):
    judgement = judge_one(function)
    assert judgement.reward is None
    assert message in judgement.verdicts[0].reason


def test_slow_functions_run_side_by_side():
    all_four = threading.Barrier(4)

    def slow(task, text):
        all_four.wait(timeout=60)  # none returns before all have begun
        return by_word(task, text)

    with JudgeRunner(FunctionJudge(slow)) as runner:
        futures = [runner.submit(TASK, make_rollout("fish", id=f"g/{n}")) for n in range(4)]
        assert [future.result().judgement.reward for future in futures] == [0.6] * 4


def test_functions_are_named_in_the_configuration_by_their_path(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("def good(task, text) -> float:\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="If you trust it, export HERL_ALLOW_TARGETS=my_rewards"):
        FunctionJudge("my_rewards.good")
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "other, my_rewards")
    assert judge_one("my_rewards.good").reward == 1.0
    sys.modules.pop("my_rewards")
    with pytest.raises(ConfigError, match=r"judge.function: my_rewards has no 'god'. Did you mean 'good'\?"):
        FunctionJudge("my_rewards.god")


PROMPT_ONLY = replace(TASK, rubric=Rubric(criteria=()), meta={"solution": "fish", "level": 3})


def claims_a_number(task, text) -> float:
    return by_word(task, text)


def says_nothing(task, text):
    return 1.0


def says_all(task, text, rollout):
    return Judgement(rollout_id=rollout.id, verdicts=(), reward=0.5)


def needs_more(task, text):
    return 1.0


def two_wrong(task, text):
    return {"fish": True, "lake": True}


@pytest.mark.parametrize(
    ("function", "holistic"),
    [
        (by_word, False),
        (later, False),
        (length, True),
        (claims_a_number, False),
        (says_nothing, True),
        (lambda task, text: True, True),
        (lambda task, text: np.float32(0.5), True),
        (says_all, True),
    ],
)
def test_what_a_function_returns_decides_whether_it_is_holistic(function, holistic):
    judge = FunctionJudge(function)
    judge.check_task(TASK)
    assert judge.holistic == holistic
    assert judge_one(function).reward is not None


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            crashes,
            r"judge.function: .*crashes raised ZeroDivisionError: division by zero\n"
            r"  .*test_function.py:\d+: return {\"fish\": 1 / 0}\nIt was called once, with row 'task' and the made-up",
        ),
        (
            lambda task, text: [1.0],
            r"got list \[1.0\]. herl calls it for one answer at a time. It may return one of",
        ),
        (
            lambda task, text: None,
            r"got None. Does it end without a return\? It may return one of\n  0.5, True",
        ),
        (wrong, r"expected True, False, None or a number in \[0, 1\] for 'fish', got 'yes'"),
        (
            two_wrong,
            r"one verdict for each criterion of row 'task', \['fish', 'river'\], got \['fish', 'lake'\]",
        ),
        (
            lambda task, text: {},
            r"one verdict for each criterion of row 'task', .*, got \[\]. Criteria without",
        ),
        (lambda task, text: float("nan"), r"expected a finite reward, got nan. It may return one of"),
        (
            lambda task, text, **columns: needs_more(task),
            r"needs_more\(\) missing 1 .*\n  .*test_function.py:\d+: lambda task, text, \*\*columns: needs_more",
        ),
    ],
)
def test_a_function_is_tried_once_and_its_mistake_names_its_line(function, words):
    with pytest.raises(ConfigError, match=words):
        FunctionJudge(function).check_task(TASK)


def test_a_function_is_tried_in_a_notebook_as_well():
    async def as_number(task, text):
        return 0.5

    async def cell():  # whose thread has a running event loop
        for function in (as_number, lambda task, text: 0.5):
            judge = FunctionJudge(function)
            judge.check_task(make_task())
            assert judge.holistic
            assert check_judge(judge).reward == 0.5

    asyncio.run(cell())


def test_a_function_is_called_for_the_first_row_only():
    seen = []

    def counts(task, text):
        seen.append(task.id)
        return 1.0

    judge = FunctionJudge(counts)
    for name in ("a", "b"):
        judge.check_task(replace(PROMPT_ONLY, id=name))
    assert seen == ["a"]


def test_columns_reach_the_function_by_the_names_of_its_arguments():
    got = {}

    def solves(task, text, solution, reference, prompt, *, level=0, missing=7, rollout):
        got.update(solution=solution, reference=reference, prompt=prompt, level=level, missing=missing)
        return float(solution in rollout.text)

    def takes_all(task, text, **columns):
        got.update(columns)
        return 0.25

    task = replace(PROMPT_ONLY, reference="It eats fish.")
    with JudgeRunner(FunctionJudge(solves)) as runner:
        assert runner.submit(task, make_rollout("fish")).result().judgement.reward == 1.0
    assert got == {
        "solution": "fish", "reference": "It eats fish.", "prompt": task.request, "level": 3, "missing": 7,
    }  # fmt: skip
    got.clear()
    assert check_judge(FunctionJudge(takes_all), PROMPT_ONLY).reward == 0.25
    assert got == PROMPT_ONLY.meta


@pytest.mark.parametrize("first_two", ["task, text", "row, rollout"])
def test_a_column_named_as_one_of_the_first_two_arguments_stays_in_the_meta(first_two):
    got = {}
    row = replace(PROMPT_ONLY, meta={"task": "sums", "text": "1 + 1", "row": 2, "rollout": 3, "level": 4})
    names = first_two.split(", ")
    scope = {"got": got}
    exec(f"def f({first_two}, **columns):\n    got.update(columns)\n    return 1.0", scope)
    assert check_judge(FunctionJudge(scope["f"]), row).reward == 1.0
    assert got == {name: cell for name, cell in row.meta.items() if name not in names}
    exec(f"def f({first_two}, /, **columns):\n    got.update(columns)\n    return 1.0", scope)
    assert check_judge(FunctionJudge(scope["f"]), row).reward == 1.0
    assert got == row.meta


def test_the_line_of_a_call_that_fails_is_that_of_the_function():
    def wants(task, text, /, **columns):
        return 1.0

    judge = FunctionJudge(wants)
    judge._takes_all = False
    judge._arguments = lambda task, rollout: {1: 2}  # no name: the call itself fails
    with pytest.raises(ConfigError, match=r"\n  .*test_function.py:\d+: def wants\(task, text, /, "):
        judge.check_task(PROMPT_ONLY)


def test_a_missing_column_and_a_missing_rubric_are_errors_of_the_row():
    asks = FunctionJudge(lambda task, text, gold: 1.0)
    with pytest.raises(DataError, match="gold: .* but the row has no such column; .*: solution, level"):
        asks.check_task(PROMPT_ONLY)
    with pytest.raises(
        DataError, match=r"it has no rubric: if one of its other columns \(solution, level\) is"
    ):
        FunctionJudge(lambda task, text: {}).check_task(PROMPT_ONLY)


@pytest.mark.parametrize(
    "function", [lambda text: 1.0, lambda completions, **columns: [1.0], lambda: 1.0, "herl.errors"]
)
def test_a_function_takes_a_task_and_a_text(function):
    with pytest.raises(ConfigError, match="judge.function: expected a (class or a )?function"):
        FunctionJudge(function)


def test_what_a_function_raises_in_a_run_is_said_once_with_its_line(caplog):
    judge = FunctionJudge(crashes)
    for _ in range(2):
        with pytest.raises(JudgeError):
            asyncio.run(judge.judge(make_task(), make_rollout()))
    [record] = caplog.records
    assert (
        "crashes raised ZeroDivisionError: division by zero, and the answer abstains" in record.getMessage()
    )
    assert "test_function.py:" in record.getMessage()
