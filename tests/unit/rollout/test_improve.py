import pytest

from herl.environment.runner import EnvironmentRunner
from herl.errors import ConfigError
from herl.evaluation.evaluate import trajectory_records
from herl.hindsight.revision import RevisionBuilder
from herl.judge import JudgeRunner
from herl.rollout.improve import Trajectory, rewards_by_round
from herl.rollout.stages import RolloutPlan, Stages
from herl.rollout.validate import validate
from herl.sampler.scripted import ScriptedSampler
from herl.testing import FakeJudge, make_judged, make_rollout, make_task
from herl.types import Sampling
from tests.support.episodes import FakeQuiz

TASKS = [make_task({"fish": 3.0, "river": 2.0, "brown": 5.0}, id=name) for name in ("otter", "fox")]


class FakeScript(ScriptedSampler):
    """Returns a task's revisions round by round, and records the requests."""

    def __init__(self, attempts, revisions):
        super().__init__(attempts, revisions)
        self.asked = []

    def generate(self, requests):
        self.asked += requests
        yield from super().generate(requests)


def improved(tokenizer, first, revisions, *, rounds=2, judge=None, hindsight=None, heldout=None, **options):
    sampler = FakeScript(first, revisions)
    sampler.start(None, tokenizer)
    with JudgeRunner(judge or FakeJudge()) as runner:
        stages = Stages(
            tokenizer=tokenizer, sampler=sampler, judge_runner=runner, plan=RolloutPlan(heldout=heldout), selection=None,
            advantages=None, hindsight=hindsight or RevisionBuilder(),
        )  # fmt: skip
        return validate(TASKS, stages, seed=0, revisions=rounds, **options), sampler


def test_each_round_revises_the_best_answer_so_far_and_ends_when_it_is_perfect(tokenizer):
    found, sampler = improved(
        tokenizer,
        {"otter": ["river"], "fox": ["fish"]},
        {"otter": ["fish", "fish river"], "fox": ["fish river brown", "never asked for"]},
    )
    otter, fox = found.trajectories
    assert [one.rollout.text for one in otter.answers] == ["river", "fish", "fish river"]
    assert [one.rollout.text for one in fox.answers] == ["fish", "fish river brown"]
    assert rewards_by_round(found.trajectories, 2) == pytest.approx([0.25, 0.65, 0.75])
    assert otter.answers[2].rollout.parent_id == otter.answers[1].rollout.id
    assert len(sampler.asked) == 2 + 2 + 1


def test_a_worse_revision_is_not_revised_and_changes_no_score(tokenizer):
    found, sampler = improved(
        tokenizer,
        {"otter": ["fish"], "fox": ["fish river brown"]},
        {"otter": ["none", "fish river"], "fox": ["never asked for"]},
    )
    otter, fox = found.trajectories
    first = otter.answers[0].rollout.id
    assert [one.rollout.parent_id for one in otter.answers] == [None, first, first]
    assert (otter.reward(0), otter.reward(1), otter.reward(2)) == pytest.approx((0.3, 0.3, 0.5))
    assert len(fox.answers) == 1
    assert len({one.rollout.id for one in otter.answers}) == 3
    again = [request for request in sampler.asked if request.parent_id == first]
    assert len({request.seed for request in again}) == 2  # otherwise it would sample the same again


def test_each_attempt_is_revised_on_its_own(tokenizer):
    found, _ = improved(
        tokenizer,
        {"otter": ["fish", "river"], "fox": ["brown", "none"]},
        {"otter": ["fish river"], "fox": ["fish brown"]},
        rounds=1,
        attempts=2,
    )
    texts = [[one.rollout.text for one in trajectory.answers] for trajectory in found.trajectories]
    assert texts == [
        ["fish", "fish river"],
        ["river", "fish river"],
        ["brown", "fish brown"],
        ["none", "fish brown"],
    ]


def test_an_answer_that_cannot_be_judged_is_not_revised_and_has_no_reward(tokenizer):
    found, _ = improved(
        tokenizer,
        {"otter": ["broken"], "fox": ["fish"]},
        {"fox": ["fish river"]},
        judge=FakeJudge(fail_on="broken"),
        rounds=1,
    )
    otter, fox = found.trajectories
    assert (otter.reward(), len(otter.answers)) == (None, 1)
    assert rewards_by_round(found.trajectories, 1) == pytest.approx([fox.reward(0), fox.reward(1)])


def test_attempts_are_drawn_as_asked_for(tokenizer):
    _, sampler = improved(
        tokenizer, {"otter": ["fish"], "fox": ["fish"]}, {}, rounds=0, heldout=Sampling(temperature=0.0)
    )
    assert {request.sampling.temperature for request in sampler.asked} == {0.0}


def test_revisions_need_something_that_writes_revision_prompts(tokenizer):
    from herl.hindsight import NoHindsight

    with pytest.raises(
        ConfigError, match=r"revisions: expected 0 with a hindsight .* got 1: add hindsight=rewrite"
    ):
        improved(tokenizer, {}, {}, rounds=1, hindsight=NoHindsight())
    with pytest.raises(ConfigError, match="revisions: expected at least 0, got -1"):
        improved(tokenizer, {}, {}, rounds=-1)


def test_records_tell_round_parent_and_best():
    task = make_task()
    first = make_judged(0.6, met={"fish": True, "river": False}, rollout=make_rollout("fish"))
    second = make_judged(
        0.4,
        met={"fish": False, "river": True},
        rollout=make_rollout("river", id="g/0/0", parent_id="group/0"),
    )
    records = list(trajectory_records([Trajectory(task=task, answers=(first, second))]))
    assert [(r["round"], r["best"], r["parent_reward"]) for r in records] == [
        (0, True, None),
        (1, False, 0.6),
    ]
    assert [v["fulfilled"] for v in records[1]["verdicts"]] == [False, True]
    assert records[0]["verdicts"][0]["criterion"] == "Says fish."


def test_revisions_of_episodes_are_episodes(tokenizer):
    sampler = ScriptedSampler(
        {"otter": ["river"], "fox": ["fish river brown"]},
        {"otter": ["fish river"], "fox": ["never asked for"]},
    )
    sampler.start(None, tokenizer)
    playing = EnvironmentRunner(FakeQuiz())
    playing.open()
    try:
        with JudgeRunner(FakeJudge()) as runner:
            stages = Stages(
                tokenizer=tokenizer, sampler=sampler, judge_runner=runner, plan=RolloutPlan(), selection=None, advantages=None,
                hindsight=RevisionBuilder(), environment_runner=playing,
            )  # fmt: skip
            found = validate(TASKS, stages, seed=0, revisions=1)
    finally:
        playing.close()
    otter, fox = found.trajectories
    assert found.episodes
    assert len(fox.answers) == 1
    attempt, revision = (one.rollout for one in otter.answers)
    assert [turn.text for turn in revision.turns] == ["fish river"] * 2
    assert revision.parent_id == attempt.id
    assert rewards_by_round(found.trajectories, 1) == pytest.approx([(0.2 + 1.0) / 2, (0.5 + 1.0) / 2])
    records = list(trajectory_records(found.trajectories))
    assert [len(one["turns"]) for one in records] == [2, 2, 2]
