import threading
from dataclasses import replace

import numpy as np
import pytest

from herl import AbstentionLimit, ConfigError, Judge, Judgement, Rubric, Verdict
from herl.judge import JudgeRunner
from herl.judge.abstention import AbstentionWindow
from herl.judge.aggregation import absolute, all_or_nothing, weighted
from herl.testing import FakeJudge, make_judged, make_rollout, make_task

TASK = make_task()


def judge_all(runner, texts):
    with runner:
        futures = [runner.submit(TASK, make_rollout(text, id=f"group/{i}")) for i, text in enumerate(texts)]
        judged = [future.result() for future in futures]
    runner.watch(judged)
    return judged


def test_judged_answers_come_back_in_the_order_of_submission():
    judged = judge_all(JudgeRunner(FakeJudge()), ["fish", "river", "fish river", ""])
    assert [one.judgement.reward for one in judged] == pytest.approx([0.6, 0.4, 1.0, 0.0])


def test_a_judge_that_raises_abstains_and_never_scores_0():
    runner = JudgeRunner(FakeJudge(fail_on="river"))
    judged = judge_all(runner, ["fish", "river", "nothing"])
    assert [one.judgement.reward for one in judged] == [0.6, None, 0.0]
    assert [verdict.met for verdict in judged[1].judgement.verdicts] == [None, None]
    assert "FakeJudge fails on 'river'" in judged[1].judgement.verdicts[0].reason
    assert runner.causes() == {"other": 2}


class ForgetfulJudge(Judge):
    async def judge(self, task, rollout) -> Judgement:
        return Judgement(rollout_id=rollout.id, verdicts=(), reward=0.0)


def test_a_judge_that_leaves_out_criteria_abstains():
    [holistic] = judge_all(JudgeRunner(ForgetfulJudge()), ["fish"])
    assert holistic.judgement.reward == 0.0  # one score for the whole answer
    [judged] = judge_all(JudgeRunner(ForgetfulJudge(), needs_verdicts=True), ["fish"])
    assert judged.judgement.reward is None
    assert "expected one verdict for each of ['fish', 'river'], got []" in judged.judgement.verdicts[0].reason


def test_a_further_judge_runs_under_the_same_settings_and_spends_the_same_budget():
    runner = JudgeRunner(ForgetfulJudge(), window=7, max_abstention=0.1, needs_verdicts=True)
    other = runner.for_judge(FakeJudge())
    assert isinstance(other.judge, FakeJudge)
    assert other.budget is runner.budget
    assert (other.abstentions.limit, other.state_dict()["window"]) == (0.1, [])
    assert not other.needs_verdicts, "nothing is revised by its verdicts"


class NanJudge(FakeJudge):
    async def judge(self, task, rollout) -> Judgement:
        return replace(await super().judge(task, rollout), reward=float("nan"))


def test_numbers_of_numpy_become_pythons_own():
    class NumpyJudge(Judge):
        async def judge(self, task, rollout):
            verdicts = tuple(
                Verdict(criterion_id=c.id, met=np.bool_(True), score=np.float32(0.5))
                for c in task.rubric.criteria
            )
            return Judgement(rollout_id=rollout.id, verdicts=verdicts, reward=np.float64(0.25))

    with JudgeRunner(NumpyJudge()) as runner:
        judgement = runner.submit(make_task(), make_rollout()).result().judgement
    assert type(judgement.reward) is float
    assert {(type(v.met), type(v.score)) for v in judgement.verdicts} == {(bool, float)}


def test_a_reward_that_is_no_number_abstains():
    [judged] = judge_all(JudgeRunner(NanJudge()), ["fish"])
    assert judged.judgement.reward is None


class CrookedJudge(Judge):
    async def judge(self, task, rollout) -> Judgement:
        raise ZeroDivisionError("a bug in a plug-in")


def test_a_run_stops_once_too_many_verdicts_abstained():
    runner = JudgeRunner(CrookedJudge(), max_abstention=0.5, window=4)
    assert len(judge_all(runner, ["a"] * 3)) == 3
    with pytest.raises(AbstentionLimit, match=r"abstained on 8 of the last 8.*ZeroDivisionError: a bug"):
        judge_all(runner, ["a"])


def test_the_limit_is_a_share_over_a_sliding_window():
    runner = JudgeRunner(FakeJudge(fail_on="river"), max_abstention=0.5, window=4)
    assert len(judge_all(runner, ["river", "river", "fish", "fish"] * 3)) == 12


def resumed(runner, judge):
    again = JudgeRunner(judge, max_abstention=0.5, window=4)
    again.load_state_dict(runner.state_dict())
    return again


def test_a_resumed_run_remembers_what_abstained_before():
    runner = JudgeRunner(CrookedJudge(), max_abstention=0.5, window=4)
    judge_all(runner, ["a"] * 3)
    with pytest.raises(AbstentionLimit, match=r"abstained on 8 of the last 8.*ZeroDivisionError: a bug"):
        judge_all(resumed(runner, CrookedJudge()), ["a"])
    assert resumed(runner, FakeJudge()).totals() == runner.totals()


def test_a_run_resumed_after_the_limit_with_a_better_judge_goes_on():
    runner = JudgeRunner(CrookedJudge(), max_abstention=0.5, window=4)
    with pytest.raises(AbstentionLimit):
        judge_all(runner, ["a"] * 4)
    assert len(judge_all(resumed(runner, FakeJudge()), ["fish"] * 4)) == 4


class WithoutKey(FakeJudge):
    async def start(self, budget):
        raise ConfigError("no key")


def test_a_judge_that_cannot_start_is_an_error_and_leaves_no_thread():
    before = threading.active_count()
    with pytest.raises(ConfigError, match="no key"):
        JudgeRunner(WithoutKey()).open()
    assert threading.active_count() == before


class Misconfigured(FakeJudge):
    async def judge(self, task, rollout):
        raise ConfigError("wrong key")


def test_an_error_in_the_configuration_ends_the_run_and_does_not_abstain():
    with pytest.raises(ConfigError, match="wrong key"):
        judge_all(JudgeRunner(Misconfigured()), ["fish"])


class SeesText(FakeJudge):
    async def judge(self, task, rollout):
        assert "secret" not in rollout.text
        return await super().judge(task, rollout)


def test_thinking_is_hidden_from_judges_where_configured():
    [judged] = judge_all(JudgeRunner(SeesText(), strip_thinking=True), ["<think>secret river</think>fish"])
    assert judged.judgement.reward == pytest.approx(0.6)
    assert judged.rollout.text == "<think>secret river</think>fish"


UNENDED = make_rollout("", thinking="Fish? A river?", thinking_tokens=4, has_answer=False)


class Untouchable(FakeJudge):
    async def judge(self, task, rollout):
        raise AssertionError("there is nothing to judge")


class Undecided(FakeJudge):
    """Cannot tell on `river`, nor on anything else of an empty answer."""

    async def judge(self, task, rollout):
        verdicts = [
            Verdict(criterion_id=c.id, met=None if c.id == "river" or not rollout.text else True)
            for c in task.rubric.criteria
        ]
        return self.verdict_sum(task, rollout, verdicts)


class NumberOnly(Untouchable):
    holistic = True


def judge_one(runner, task, rollout):
    with runner:
        judged = runner.submit(task, rollout).result()
    runner.watch([judged])
    return judged.judgement


@pytest.mark.parametrize(
    ("weights", "aggregation", "reward"),
    [
        ({"fish": 3.0, "river": 2.0}, weighted, 0.0),
        ({"fish": 3.0, "advert": -3.0}, weighted, 0.0),
        ({"fish": 3.0, "advert": -1.0}, absolute, -0.25),
        ({"fish": 3.0, "advert": -1.0}, all_or_nothing, 0.0),
    ],
)
def test_an_answer_whose_thinking_never_ended_fulfills_nothing_and_costs_nothing(
    weights, aggregation, reward
):
    task, judge = make_task(weights), Untouchable()
    judge.aggregation = aggregation
    runner = JudgeRunner(judge)
    judgement = judge_one(runner, task, UNENDED)
    assert judgement.reward == pytest.approx(reward)
    assert not any(task.rubric.fulfilled(judgement.verdicts).values())
    assert len(judgement.verdicts) == len(weights)
    assert (judgement.usage["no_answer"], runner.totals()["no_answer"], runner.causes()) == (1, 1, {})


def test_a_holistic_judge_gives_such_an_answer_its_lowest_reward():
    judgement = judge_one(JudgeRunner(NumberOnly()), TASK, UNENDED)
    assert (judgement.reward, judgement.verdicts) == (0.0, ())


def test_judges_read_the_thinking_as_well_where_configured():
    thought = make_rollout("fish", thinking="a river", thinking_tokens=3)
    assert judge_one(JudgeRunner(FakeJudge()), TASK, thought).reward == pytest.approx(0.6)
    shown = JudgeRunner(FakeJudge(), strip_thinking=False)
    assert judge_one(shown, TASK, thought).reward == pytest.approx(1.0)


def test_a_judge_that_cannot_tell_on_most_of_an_answer_is_an_alarm(caplog):
    runner = JudgeRunner(Undecided(), max_cannot_tell=0.5)
    judge_all(runner, ["fish"] * 2)
    assert "mostly_cannot_tell" not in runner.totals(), "half is allowed"
    assert not caplog.text
    runner = JudgeRunner(Undecided(), max_cannot_tell=0.4)
    judge_all(runner, ["fish"] * 2)
    assert runner.totals()["mostly_cannot_tell"] == 2
    assert caplog.text.count("cannot tell on 1 of 2 criteria of an answer to task 'task'") == 1


def test_a_run_in_which_nothing_was_judged_is_an_error_before_the_window_is_full():
    runner = JudgeRunner(CrookedJudge(), window=64)
    runner.check_judged()  # nothing was asked yet
    judge_all(runner, ["a"] * 3)
    with pytest.raises(AbstentionLimit, match=r"none of the run's 3 answers.*other 6.*a bug in a plug-in"):
        runner.check_judged()
    better = JudgeRunner(FakeJudge(), window=64)
    better.load_state_dict(runner.state_dict())
    judge_all(better, ["fish"])
    better.check_judged()


class Unhelpful(Judge):
    """Judges rows without a rubric: the reward is whatever the answer says, or None."""

    async def judge(self, task, rollout):
        if rollout.text == "none":
            return Judgement(rollout_id=rollout.id, verdicts=(), reward=None)
        return Judgement(rollout_id=rollout.id, verdicts=(), reward=float(rollout.text))


@pytest.mark.parametrize(
    ("bad", "cause", "told"),
    [("x", "other", "ValueError: could not convert"), ("none", "cannot_tell", "a verdict with met=None")],
)
def test_a_run_without_rubrics_stops_once_too_many_answers_abstained(bad, cause, told):
    task = replace(make_task(), rubric=Rubric(criteria=()))

    def judged(runner, texts):
        with runner:
            found = [runner.submit(task, make_rollout(text)).result() for text in texts]
        runner.watch(found)
        return found

    runner = JudgeRunner(Unhelpful(), max_abstention=0.5, window=4)
    assert [one.judgement.reward for one in judged(runner, ["1", "1", bad, bad])] == [1, 1, None, None]
    assert runner.causes() == {cause: 2}
    with pytest.raises(AbstentionLimit, match=rf"on 3 of the last 4.*{cause} 4. Last failure: {told}"):
        judged(runner, [bad, bad, "1"])


def test_judging_time_is_part_of_the_usage():
    [judged] = judge_all(JudgeRunner(FakeJudge()), ["fish"])
    assert judged.judgement.usage["seconds"] > 0


def test_no_thread_is_left_behind():
    before = threading.active_count()
    judge_all(JudgeRunner(FakeJudge()), ["fish"])
    assert threading.active_count() == before


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="max_abstention"):
        JudgeRunner(FakeJudge(), max_abstention=2.0)


def test_the_way_back_undoes_counts_but_not_what_the_limit_emptied():
    window = AbstentionWindow(answers=3, limit=0.5)
    window.add(make_judged(1.0, met={"fish": True}).judgement)
    before, way_back = window.state_dict(), window.way_back()
    window.add(make_judged(None, met={"fish": None}).judgement)
    assert window.state_dict() != before
    way_back()
    assert window.state_dict() == before
    for _ in range(2):
        window.add(make_judged(None, met={"fish": None}).judgement)
    with pytest.raises(AbstentionLimit):
        window.check("judge", {})
    way_back()
    assert window.state_dict() == before | {"window": []}
