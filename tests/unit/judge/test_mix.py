import asyncio
from dataclasses import replace

import pytest

from herl import ConfigError, Criterion, Rubric
from herl.judge import JudgeRunner
from herl.judge.function import FunctionJudge
from herl.judge.mix import RoutedJudge, WeightedJudges
from herl.judge.rule import RuleJudge
from herl.testing import FakeJudge, check_judge, make_rollout, make_task
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.llm_judges import judge_all, made

TASK = replace(
    make_task(),
    rubric=Rubric(
        criteria=(
            Criterion(id="fish", text="Says fish.", check={"kind": "contains", "text": "fish"}),
            Criterion(id="river", text="Says river.", category="style"),
            Criterion(id="otter", text="Says otter."),
        )
    ),
)


def judged(judge, text):
    return asyncio.run(judge.judge(TASK, make_rollout(text)))


def verdicts(judge, text):
    return {verdict.criterion_id: verdict.met for verdict in judged(judge, text).verdicts}


class Counting(FakeJudge):
    def __init__(self, fail_on=None):
        super().__init__(fail_on)
        self.seen = []

    async def judge(self, task, rollout):
        self.seen.append([criterion.id for criterion in task.rubric.criteria])
        return await super().judge(task, rollout)


def test_each_criterion_goes_to_one_judge_by_check_category_or_default():
    style, rest = Counting(), Counting()
    judge = RoutedJudge(
        {"rule": RuleJudge(), "style": style, "rest": rest}, {"contains": "rule", "style": "style"}, "rest"
    )
    assert verdicts(judge, "FISH river") == {"fish": True, "river": True, "otter": False}
    assert (style.seen, rest.seen) == ([["river"]], [["otter"]])
    check_judge(judge)


def test_without_a_route_a_criterion_abstains():
    judge = RoutedJudge({"rule": RuleJudge()}, {"contains": "rule"})
    judgement = judged(judge, "fish")
    assert [verdict.met for verdict in judgement.verdicts] == [True, None, None]
    assert judgement.reward == 1.0


def test_a_judge_that_fails_takes_only_its_own_criteria_along():
    judge = RoutedJudge({"a": FakeJudge(), "b": FakeJudge(fail_on="fish")}, {"style": "b"}, "a")
    judgement = judged(judge, "fish otter")
    assert [verdict.met for verdict in judgement.verdicts] == [True, None, True]
    assert judgement.verdicts[1].reason == "judge 'b': FakeJudge fails on 'fish'"
    assert judgement.usage == {"abstained_other": 1}


@pytest.mark.parametrize("error", [SystemExit(2), KeyboardInterrupt()])
def test_a_judge_that_exits_takes_only_its_own_criteria_along(error):
    class FakeExits(FakeJudge):
        async def judge(self, task, rollout):
            raise error

    judge = RoutedJudge({"a": FakeJudge(), "b": FakeExits()}, {"style": "b"}, "a")
    with JudgeRunner(judge) as runner:
        judgement = runner.submit(TASK, make_rollout("fish otter")).result(timeout=20).judgement
    assert [verdict.met for verdict in judgement.verdicts] == [True, None, True]


def test_verdicts_on_criteria_that_were_not_asked_about_are_a_failure():
    everything = FunctionJudge(lambda task, text: {"fish": True, "river": True, "otter": True})
    judge = RoutedJudge({"rule": RuleJudge(), "all": everything}, {"contains": "rule"}, "all")
    judgement = judged(judge, "nothing")
    assert [verdict.met for verdict in judgement.verdicts] == [False, None, None]
    assert judgement.usage == {"abstained_wrong_count": 2}


def test_several_judges_are_weighed():
    yes = FunctionJudge(lambda task, text: {c.id: True for c in task.rubric.criteria})
    judge = WeightedJudges({"word": FakeJudge(), "yes": yes}, {"word": 3.0})
    judgement = judged(judge, "fish")
    assert [(v.score, v.met) for v in judgement.verdicts] == [(1.0, True), (0.25, False), (0.25, False)]
    assert judgement.reward == pytest.approx(0.5)
    alone = WeightedJudges({"word": FakeJudge(fail_on="fish"), "yes": yes})
    assert judged(alone, "fish").reward == 1.0  # the one that failed has no vote


def test_judges_that_agree_on_the_bound_reach_it():
    grade = FunctionJudge(lambda task, text: {c.id: 0.7 for c in task.rubric.criteria})
    judge = WeightedJudges(dict.fromkeys("abc", grade), met_at=0.7)
    assert [verdict.met for verdict in judged(judge, "fish").verdicts] == [True] * 3


def test_judges_with_connections_start_and_stop_with_the_mix():
    with FakeEndpoint() as endpoint:
        judge = RoutedJudge({"rule": RuleJudge(), "model": made(endpoint)}, {"contains": "rule"}, "model")
        [judgement], runner = judge_all(judge, ["fish otter"], task=TASK)
    assert [verdict.met for verdict in judgement.verdicts] == [True, False, True]
    assert runner.usage["calls"] == 1


def test_what_cannot_work_is_refused():
    with pytest.raises(
        ConfigError, match=r"judge.routes: expected names of judges \(rule\), got \['model'\]"
    ):
        RoutedJudge({"rule": RuleJudge()}, {"contains": "model"})
    with pytest.raises(ConfigError, match=r"judge.weights: expected numbers above 0 for rule"):
        WeightedJudges({"rule": RuleJudge()}, {"other": 1.0})
    with (
        FakeEndpoint() as endpoint,
        pytest.raises(ConfigError, match=r"judge.judges.one: expected a judge with a verdict per criterion"),
    ):
        RoutedJudge({"one": made(endpoint, mode="holistic")}, {}, "one")
    with pytest.raises(ConfigError, match="at least one judge"):
        RoutedJudge({}, {})
