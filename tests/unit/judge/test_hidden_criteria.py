"""A judge that trains gives no verdict on hidden criteria, even if it knows their ids."""

from dataclasses import replace

import pytest

from herl import ConfigError, Judge, Judgement, Rubric, Verdict
from herl.data.hidden import WholeTasks
from herl.judge import JudgeRunner
from herl.judge.check_rows import check_rows
from herl.judge.function import FunctionJudge
from herl.judge.mix import WeightedJudges
from herl.testing import make_rollout, make_task

ALL = make_task({"fish": 3.0, "river": 2.0})
FISH, RIVER = ALL.rubric.criteria
HIDING = replace(ALL, rubric=Rubric(criteria=(FISH,)), hidden=(RIVER,))


def fixed(task, text):
    return {"fish": "fish" in text, "river": "river" in text}


async def later(task, text):
    return fixed(task, text)


class Plugin(Judge):
    async def judge(self, task, rollout):
        verdicts = [Verdict(criterion_id=name, met=met) for name, met in fixed(task, rollout.text).items()]
        return self.verdict_sum(task, rollout, verdicts)


class Bare(Judge):
    """Builds its judgement itself, without a reward."""

    async def judge(self, task, rollout):
        verdicts = tuple(Verdict(criterion_id=name, met=True) for name in ("fish", "river"))
        return Judgement(rollout_id=rollout.id, verdicts=verdicts, reward=None)


@pytest.fixture
def path(tmp_path, monkeypatch):
    (tmp_path / "fixed_ids.py").write_text(
        "def reward(task, text):\n"
        "    assert not task.hidden\n"
        "    return {'fish': 'fish' in text, 'river': 'river' in text}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "fixed_ids")
    return "fixed_ids.reward"


def judged(judge, task, text="fish"):
    with JudgeRunner(judge, needs_verdicts=True) as runner:
        found = runner.submit(task, make_rollout(text)).result().judgement
    return {one.criterion_id: one.met for one in found.verdicts}, found.reward


@pytest.mark.parametrize(
    "judge",
    [
        lambda path: FunctionJudge(fixed),
        lambda path: FunctionJudge(later),
        lambda path: FunctionJudge(path),  # in its process
        lambda path: FunctionJudge(path, timeout_seconds=None),
        lambda path: Plugin(),
        lambda path: WeightedJudges({"function": FunctionJudge(fixed), "plugin": Plugin(), "bare": Bare()}),
    ],
    ids=["function", "coroutine", "process", "path", "plugin", "weighted"],
)
def test_verdicts_on_hidden_criteria_are_dropped(judge, path):
    made = judge(path)
    check_rows({"train": [HIDING, ALL]}, made)
    assert judged(made, HIDING, "fish") == ({"fish": True}, 1.0)
    assert judged(made, HIDING, "river")[0].keys() == {"fish"}
    check_rows({"heldout": WholeTasks([HIDING])}, made)
    assert judged(made, HIDING.whole, "fish")[0].keys() == {"fish", "river"}, "a gold judge sees all"


def test_a_judgement_without_a_reward_is_cut_as_well():
    assert judged(Bare(), HIDING) == ({"fish": True}, None)


def test_unknown_ids_are_still_refused():
    with pytest.raises(
        ConfigError, match=r"for each criterion of row 't', \['fish'\], got \['fish', 'zoo'\]"
    ):
        check_rows(
            {"train": [replace(HIDING, id="t")]},
            FunctionJudge(lambda task, text: {"fish": True, "river": True, "zoo": True}),
        )


def test_a_function_does_not_learn_what_is_hidden():
    seen = []

    def curious(task, text, rollout):
        seen.append((task.hidden, repr(task), repr(rollout)))
        return fixed(task, text)

    judge = FunctionJudge(curious)
    judge.check_task(HIDING)
    judged(judge, HIDING)
    assert len(seen) == 2
    assert not any(hidden or RIVER.text in task + rollout for hidden, task, rollout in seen)


def test_a_reward_that_may_count_hidden_criteria_is_refused():
    def own_reward(task, text, rollout):
        verdicts = tuple(Verdict(criterion_id=name, met=met) for name, met in fixed(task, text).items())
        return Judgement(rollout_id=rollout.id, verdicts=verdicts, reward=0.6)

    judge = FunctionJudge(own_reward)
    with pytest.raises(ConfigError, match=r"which its reward may count: \['river'\].(.|\n)*was called once"):
        check_rows({"train": [replace(ALL, id="whole"), HIDING]}, judge)  # the first row hides nothing
    assert judged(judge, HIDING) == ({"fish": None}, None)
    assert judged(judge, ALL) == ({"fish": True, "river": False}, 0.6)
