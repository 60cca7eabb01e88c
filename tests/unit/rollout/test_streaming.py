import asyncio
import threading
import time
from dataclasses import replace
from functools import partial

import pytest

from herl.advantages import group_advantages
from herl.clock import PhaseClock
from herl.distributed import gather, world_size
from herl.errors import BudgetSpent, SamplerError
from herl.hindsight.candidates import all_imperfect, bottom_k, top_k
from herl.hindsight.revision import RevisionBuilder
from herl.judge import JudgeRunner
from herl.models.pretrained import PretrainedModel
from herl.rollout.collect import collect
from herl.rollout.stages import RolloutPlan, Stages
from herl.rollout.streaming import sample_and_judge
from herl.sampler import StreamingSampler
from herl.sampler.scripted import ScriptedSampler
from herl.selection import form_group
from herl.testing import FakeJudge, make_task
from herl.types import Group, SampleRequest, Sampling
from tests.support.ranks import run_on_ranks

NAMES = ("otter", "fox", "lion")
ATTEMPTS = {
    "otter": ["fish", "river", "none"],
    "fox": ["none", "none", "fish"],
    "lion": ["river", "", "fish"],
}
REVISIONS = {name: ["fish river"] for name in NAMES}
TASKS = [make_task(id=name) for name in NAMES]


class FakeStreamingSampler(ScriptedSampler, StreamingSampler):
    """Yields its answers one by one, and accepts new requests after each."""

    closed = False
    generate = StreamingSampler.generate

    def stream(self, requests, more):
        try:
            while requests:
                coming = []
                for rollout in ScriptedSampler.generate(self, requests):
                    yield rollout
                    coming += more(False)
                requests = coming or more(True)
        finally:
            self.closed = True


class FakeSlowJudge(FakeJudge):
    """Takes a different time for each answer."""

    async def judge(self, task, rollout):
        await asyncio.sleep((hash(rollout.id) % 7) * 0.005)
        return await super().judge(task, rollout)


class FakeSharedSampler(FakeStreamingSampler):
    """Two ranks compute its answers together."""

    ranks_per_engine = 2


class FakeGroupJudge(FakeSlowJudge):
    """Judges the answers of a group together, and keeps their ids."""

    judges_groups = True

    def __init__(self):
        super().__init__()
        self.groups = []

    async def judge_group(self, task, rollouts):
        self.groups.append([one.id for one in rollouts])
        return await super().judge_group(task, rollouts)


def run(tokenizer, sampler, judge, work):
    sampler.start(None, tokenizer)
    with JudgeRunner(judge) as runner:
        return work(runner)


def stages_of(tokenizer, sampler, runner, candidates=top_k):
    return Stages(
        tokenizer=tokenizer,
        sampler=sampler,
        judge_runner=runner,
        plan=RolloutPlan(attempts_per_prompt=3, revisions_per_candidate=2),
        selection=form_group,
        advantages=group_advantages,
        hindsight=RevisionBuilder(candidates),
    )


def collected(tokenizer, sampler, judge, candidates=top_k):
    def work(runner):
        return collect(TASKS, stages_of(tokenizer, sampler, runner, candidates), (0, 0, 0))

    return run(tokenizer, sampler, judge, work)


def without_times(judged):
    return replace(judged, judgement=replace(judged.judgement, usage={}))


@pytest.mark.parametrize("sampler", [ScriptedSampler, FakeStreamingSampler])
@pytest.mark.parametrize("candidates", [partial(top_k, k=1), all_imperfect])
def test_a_judge_of_groups_gets_all_attempts_of_a_group_and_then_all_its_revisions(
    tokenizer, sampler, candidates
):
    judge = FakeGroupJudge()
    groups = collected(tokenizer, sampler(ATTEMPTS, REVISIONS), judge, candidates).groups
    alone = collected(tokenizer, sampler(ATTEMPTS, REVISIONS), FakeSlowJudge(), candidates).groups
    for group, expected in zip(groups, alone, strict=True):
        assert [*map(without_times, group.attempts)] == [*map(without_times, expected.attempts)]
        assert [*map(without_times, group.revisions)] == [*map(without_times, expected.revisions)]
    parts = [[one.rollout.id for one in part] for g in groups for part in (g.attempts, g.revisions) if part]
    assert sorted(map(sorted, judge.groups)) == sorted(map(sorted, parts))


@pytest.mark.parametrize("candidates", [partial(top_k, k=1), all_imperfect, partial(bottom_k, k=2)])
def test_revising_group_by_group_gives_what_revising_all_at_the_end_gives(tokenizer, candidates):
    results = []
    for sampler in (ScriptedSampler(ATTEMPTS, REVISIONS), FakeStreamingSampler(ATTEMPTS, REVISIONS)):
        groups = collected(tokenizer, sampler, FakeSlowJudge(), candidates).groups
        results.append(
            [
                ([*map(without_times, (*group.attempts, *group.revisions))], group.advantages, group.members)
                for group in groups
            ]
        )
        for group in groups:  # in the order of the drafts, not of the builder's choices
            drafts = [attempt.rollout.id for attempt in group.attempts]
            places = [(drafts.index(one.rollout.parent_id), one.rollout.index) for one in group.revisions]
            assert places == sorted(places)
    naive, streamed = results
    assert [answers for answers, _, _ in streamed] == [answers for answers, _, _ in naive]
    assert [advantages for _, advantages, _ in streamed] == [advantages for _, advantages, _ in naive]
    assert sum(answer.rollout.origin == "hindsight" for answers, _, _ in naive for answer in answers) >= 6


def test_a_group_is_revised_while_another_is_still_being_judged(tokenizer):
    revised = threading.Event()

    class FakeBlockedJudge(FakeJudge):
        async def judge(self, task, rollout):
            if task.id == "lion" and rollout.parent_id is None:
                assert await asyncio.to_thread(revised.wait, 20), "nothing was revised in the meantime"
            return await super().judge(task, rollout)

    class FakeWatchedSampler(FakeStreamingSampler):
        def _rollout(self, request, index, text):
            if request.parent_id is not None and request.task_id == "otter":
                revised.set()
            return super()._rollout(request, index, text)

    groups = collected(tokenizer, FakeWatchedSampler(ATTEMPTS, REVISIONS), FakeBlockedJudge()).groups
    lion = groups[2]
    assert all(answer.judgement.reward is not None for answer in lion.attempts)
    assert lion.revisions


def test_a_judge_that_ends_the_run_ends_sampling(tokenizer):
    class FakeSpentJudge(FakeJudge):
        async def judge(self, task, rollout):
            raise BudgetSpent("nothing left")

    sampler = FakeStreamingSampler(ATTEMPTS, REVISIONS)
    with pytest.raises(BudgetSpent, match="nothing left"):
        collected(tokenizer, sampler, FakeSpentJudge())
    assert sampler.closed


def test_a_sampler_that_leaves_answers_out_is_an_error(tokenizer):
    class FakeForgetfulSampler(ScriptedSampler):
        def generate(self, requests):
            yield from list(super().generate(requests))[:-2]

    with pytest.raises(SamplerError, match="FakeForgetfulSampler left out 2 of the requested answers"):
        collected(tokenizer, FakeForgetfulSampler(ATTEMPTS, REVISIONS), FakeJudge())


def test_answers_come_back_in_order_whatever_finished_first(tokenizer):
    requests = [
        SampleRequest(
            task_id=name, group_id=f"g:{name}", prompt_ids=(1, 2), n=12, sampling=Sampling(), seed=0
        )
        for name in NAMES
    ]
    sampler = ScriptedSampler(ATTEMPTS, REVISIONS)
    clock = PhaseClock()
    groups = [Group(id=f"g:{task.id}", task=task, prompt_ids=(1, 2)) for task in TASKS]
    found = run(
        tokenizer,
        sampler,
        FakeSlowJudge(),
        lambda runner: sample_and_judge(stages_of(tokenizer, sampler, runner), groups, requests, clock),
    )
    places = [(one.rollout.group_id, one.rollout.index) for one in found.judged]
    assert places == [(f"g:{name}", index) for name in NAMES for index in range(12)]
    assert found.followed_up == frozenset()  # this sampler only generates
    assert clock.seconds["judge"] > 0


def test_a_phase_within_another_pauses_it():
    clock = PhaseClock()
    started = time.perf_counter()
    with clock.time("outer"):
        time.sleep(0.02)
        with clock.time("inner"):
            time.sleep(0.04)
        with clock.time("inner"):
            pass
    spent = time.perf_counter() - started
    assert clock.seconds["inner"] >= 0.04
    assert clock.seconds["outer"] >= 0.02
    assert sum(clock.seconds.values()) == pytest.approx(spent, abs=1e-3)


def test_a_sampler_that_does_not_know_parts_of_requests_is_an_error(tokenizer):
    class FakeFromTheStart(ScriptedSampler):
        def generate(self, requests):
            return super().generate([replace(request, first=0) for request in requests])

    request = SampleRequest(
        task_id="fox", group_id="g", prompt_ids=(1,), n=2, sampling=Sampling(), seed=0, first=1
    )
    groups = [Group(id="g", task=make_task(id="fox"), prompt_ids=(1,))]
    sampler = FakeFromTheStart(ATTEMPTS)
    with pytest.raises(SamplerError, match="got answer 0 to a prompt of task 'fox', .* request.indices"):
        run(
            tokenizer,
            sampler,
            FakeJudge(),
            lambda runner: sample_and_judge(
                stages_of(tokenizer, sampler, runner), groups, [request], PhaseClock()
            ),
        )


def _everything(collection):
    return [
        ([*map(without_times, (*group.attempts, *group.revisions))], group.advantages)
        for group in collection.groups
    ]


CASES = {
    "only generates": (ScriptedSampler, FakeSlowJudge),
    "streams": (FakeStreamingSampler, FakeSlowJudge),
    "two ranks an engine": (FakeSharedSampler, FakeSlowJudge),
    "a judge of groups": (ScriptedSampler, FakeGroupJudge),
    "a judge of groups, streams": (FakeStreamingSampler, FakeGroupJudge),
}


def _collect_on_ranks(expected):
    tokenizer = PretrainedModel(path="tiny").tokenizer()
    for name, (sampler, judge) in CASES.items():
        if world_size() % sampler.ranks_per_engine:
            continue
        own = []

        class FakeWatched(sampler):
            def _rollout(self, request, index, text):
                own.append((request.group_id, request.parent_id))  # noqa: B023  # the round is over by then
                return super()._rollout(request, index, text)

        assert _everything(collected(tokenizer, FakeWatched(ATTEMPTS, REVISIONS), judge())) == expected, name
        attempts = [{group for group, parent in one if parent is None} for one in gather(own)]
        whole = judge is FakeGroupJudge or sampler is FakeStreamingSampler
        assert (sum(map(len, attempts)) == len(NAMES)) == whole, (
            f"{name}: groups are split unless needed whole"
        )
        assert all(attempts), f"{name}: no rank is idle"


@pytest.mark.integration
@pytest.mark.parametrize("ranks", [2, 3])
def test_answers_do_not_depend_on_the_number_of_engines(tmp_path, tokenizer, ranks):
    expected = _everything(collected(tokenizer, ScriptedSampler(ATTEMPTS, REVISIONS), FakeSlowJudge()))
    assert any(one.rollout.origin == "hindsight" for answers, _ in expected for one in answers)
    run_on_ranks(_collect_on_ranks, ranks, tmp_path, expected)
