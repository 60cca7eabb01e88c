"""The rubric told: its answers are sampled together with the attempts, and are revisions in all else."""

from dataclasses import replace

import pytest

from herl.advantages import group_advantages
from herl.bonus.improvement import ImprovementBonus
from herl.callbacks.record_answers import step_records
from herl.errors import ConfigError
from herl.hindsight.gate import gated
from herl.hindsight.told import ToldBuilder
from herl.judge import JudgeRunner
from herl.metrics.collection import collection_counts, collection_metrics
from herl.models.chat_template import render
from herl.replay import ReplayBuffer
from herl.rollout.collect import collect
from herl.rollout.stages import RolloutPlan, Stages
from herl.rollout.validate import validate
from herl.sampler import StreamingSampler
from herl.sampler.scripted import ScriptedSampler
from herl.sampler.transformers import TransformersSampler
from herl.selection import form_group
from herl.testing import FakeJudge, make_task
from herl.types import Judgement, Sampling

ATTEMPTS = {"otter": ["fish", "none", "river"], "fox": ["none", "fish river", "none"]}
TOLD = {"otter": ["fish river", "none"], "fox": ["river", "fish"]}
TASKS = [make_task(id=name, request=f"Describe the {name}, a mammal.") for name in ATTEMPTS]


class FakeCountingSampler(ScriptedSampler):
    """Remembers the requests of each call."""

    def __init__(self):
        super().__init__(ATTEMPTS, TOLD)
        self.calls = []

    def generate(self, requests):
        self.calls.append(list(requests))
        return super().generate(requests)


class FakeBackwardStream(StreamingSampler, ScriptedSampler):
    """Answers the last request first, while it accepts more."""

    def stream(self, requests, more):
        assert not more(False)
        yield from reversed(list(ScriptedSampler.generate(self, requests)))
        assert not more(True)


class FakeHolisticJudge(FakeJudge):
    """Gives one score for the whole answer."""

    holistic = True

    async def judge(self, task, rollout):
        return Judgement(rollout_id=rollout.id, verdicts=(), reward=len(rollout.text) / 10)


def run(
    tokenizer,
    work=None,
    *,
    sampler=None,
    policy=None,
    judge=None,
    tasks=TASKS,
    key=(0, 0, 0),
    plan=(),
    **changes,
):
    sampler = sampler or ScriptedSampler(ATTEMPTS, TOLD)
    sampler.start(policy, tokenizer)
    hindsight = changes.pop("hindsight", ToldBuilder())
    with JudgeRunner(judge or FakeJudge(), needs_verdicts=hindsight.needs_verdicts) as runner:
        settings = {"attempts_per_prompt": 3, "revisions_per_candidate": 2} | dict(plan)
        parts = {"selection": form_group, "advantages": group_advantages, "hindsight": hindsight} | changes
        plan = RolloutPlan(**settings)
        stages = Stages(tokenizer=tokenizer, sampler=sampler, judge_runner=runner, plan=plan, **parts)
        return work(stages) if work else collect(tasks, stages, key)


def without_times(judged):
    return replace(judged, judgement=replace(judged.judgement, usage={}))


def test_one_pass_samples_everything_and_the_answer_joins_like_a_revision(tokenizer):
    sampler = FakeCountingSampler()
    collection = run(tokenizer, sampler=sampler)
    [requests] = sampler.calls
    assert [(r.group_id, r.told, r.n) for r in requests] == [
        (group.id, told, n) for told, n in ((False, 3), (True, 2)) for group in collection.groups
    ]
    assert len({request.seed for request in requests}) == 4
    otter, fox = collection.groups
    assert [one.rollout.id for one in otter.revisions] == [f"{otter.id}/told/{i}" for i in range(2)]
    assert {(one.rollout.origin, one.rollout.parent_id) for one in otter.revisions} == {("hindsight", None)}
    assert [(m.origin, m.total) for m in otter.members] == [
        ("policy", 0.6),
        ("hindsight", 1.0),
        ("policy", 0.4),
    ]
    assert [m.origin for m in fox.members] == ["policy"] * 3, "it does not beat the best attempt"
    assert collection_counts(collection)["answers_sampled"] == 10
    assert collection_counts(collection)["revisions_sampled"] == 4


def test_a_bonus_that_could_never_be_paid_is_refused(tokenizer):
    with pytest.raises(
        ConfigError, match="bonus: expected none with hindsight=told, .* got ImprovementBonus"
    ):
        run(tokenizer, bonus=ImprovementBonus())


@pytest.mark.parametrize(("context", "expected"), [("original", "x"), ("hindsight", "h"), ("both", "xh")])
def test_it_is_trained_under_the_chosen_context(tokenizer, context, expected):
    collection = run(tokenizer, tasks=TASKS[:1], plan={"training_context": context})
    told = ToldBuilder().tell(TASKS[0])
    prompts = {"x": render(tokenizer, TASKS[0].messages), "h": render(tokenizer, told)}
    contexts = [e.context_ids for e in collection.experiences if e.origin == "hindsight"]
    assert contexts == [prompts[name] for name in expected]


def test_the_order_in_which_answers_arrive_changes_nothing(tokenizer):
    straight, backward = (
        run(tokenizer, sampler=sampler).groups
        for sampler in (ScriptedSampler(ATTEMPTS, TOLD), FakeBackwardStream(ATTEMPTS, TOLD))
    )
    for one, other in zip(straight, backward, strict=True):
        for name in ("attempts", "revisions"):
            assert [*map(without_times, getattr(one, name))] == [*map(without_times, getattr(other, name))]
        assert one.advantages == other.advantages


def test_the_order_of_prompts_changes_no_answer_and_the_attempts_are_those_without_it(tokenizer, policy):
    plan = {"attempt": Sampling(max_new_tokens=12), "revision": Sampling(max_new_tokens=12)}

    def texts(tasks, hindsight):
        sampler = TransformersSampler(batch_size=5)
        found = run(tokenizer, sampler=sampler, policy=policy, tasks=tasks, plan=plan, hindsight=hindsight)
        return {
            g.task.id: [[a.rollout.token_ids for a in part] for part in (g.attempts, g.revisions)]
            for g in found.groups
        }

    there, back = (texts(tasks, ToldBuilder()) for tasks in (TASKS, TASKS[::-1]))
    assert there == back
    closed = gated(ToldBuilder(), until=0.5)
    closed.begin_batch(0.9)
    assert texts(TASKS, closed) == {name: [attempts, []] for name, (attempts, _) in there.items()}


def test_a_holistic_judge_is_enough(tokenizer):
    [otter, _] = run(tokenizer, judge=FakeHolisticJudge()).groups
    assert [m.origin for m in otter.members].count("hindsight") == 1
    assert max(m.total for m in otter.members) == pytest.approx(1.0)


def test_an_over_long_prompt_is_dropped_and_counted(tokenizer):
    fits = max(len(render(tokenizer, task.messages)) for task in TASKS)
    collection = run(tokenizer, plan={"max_prompt_tokens": fits})
    assert collection.dropped == {"prompts": 0, "revision_prompts": 2}
    assert all(len(group.attempts) == 3 and not group.revisions for group in collection.groups)


def test_curves_and_records_compare_it_with_the_best_attempt(tokenizer):
    collection = run(tokenizer)
    metrics = collection_metrics(collection)
    # otter: 1.0 and 0.0 against 0.6; fox: 0.4 and 0.6 against 1.0
    assert metrics["hindsight/uplift"] == pytest.approx((0.4 - 0.6 - 0.6 - 0.4) / 4)
    # of the criterion that otter's best attempt misses; of the five that the best attempts meet
    assert metrics["hindsight/mended"] == pytest.approx(1 / 2)
    assert metrics["hindsight/broken"] == pytest.approx(3 / 6)
    assert metrics["hindsight/accepted"] == 0.5
    assert not {"hindsight/copies", "hindsight/edit_distance"} & set(metrics), "it has seen no draft"
    records = list(step_records(collection, {"optimizer_steps": 0, "answers_sampled": 0}))
    found = [(r["origin"], r["parent_id"], r["parent_reward"]) for r in records if r["origin"] == "hindsight"]
    assert found == [("hindsight", None, best) for best in (0.6, 0.6, 1.0, 1.0)]
    assert {r["parent_reward"] for r in records if r["origin"] == "policy"} == {None}


def test_an_answer_that_joined_is_replayed_like_a_revision(tokenizer):
    def twice(stages):
        return [collect(TASKS[:1], stages, (0, epoch, 0)).groups[0] for epoch in range(2)]

    first, second = run(tokenizer, twice, replay=ReplayBuffer())
    [again] = second.replayed
    assert (again.rollout.origin, again.rollout.group_id) == ("replay", second.id)
    assert again.rollout.token_ids == first.revisions[0].rollout.token_ids


def test_test_time_asks_for_it_in_place_of_a_revision(tokenizer):
    def measured(stages):
        return validate(TASKS, stages, seed=0, revisions=1)

    otter, fox = run(tokenizer, measured).trajectories
    assert [one.rollout.text for one in otter.answers] == ["fish", "fish river"]
    assert otter.answers[1].rollout.parent_id == otter.answers[0].rollout.id
    assert [one.rollout.text for one in fox.answers] == ["none", "river"]
