import sys
import threading

import pytest

from herl import ConfigError
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
    with pytest.raises(ConfigError, match=r"judge.function: cannot import 'my_rewards.bad'"):
        FunctionJudge("my_rewards.bad")
