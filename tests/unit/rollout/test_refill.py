"""Groups without signal are replaced by further prompts, which depend on nothing but the batch."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import lightning as L
import pytest
import torch

import herl.rollout.streaming
from herl import ConfigError, NoHindsight
from herl.advantages import group_advantages
from herl.callbacks import AnswerBudget, Checkpoints
from herl.data import RubricDataModule
from herl.hindsight.teacher import Teacher
from herl.judge import JudgeRunner
from herl.judge.rule import RuleJudge
from herl.metrics.collection import collection_counts, collection_metrics
from herl.rollout.collect import collect
from herl.rollout.refill import Refill
from herl.rollout.stages import RolloutPlan, Stages
from herl.sampler.scripted import ScriptedSampler
from herl.seeds import derive_seed
from herl.selection import form_group
from herl.testing import make_task
from tests.support.training import KeepSteps, fit, module_of, weights

FLAT, SIGNAL = ["It eats fish."], ["It eats fish.", "It is brown."]
TASKS = [make_task(id=f"t{i}", request=f"Describe animal {i}.") for i in range(12)]
SCRIPT = {task.id: SIGNAL if i % 3 == 0 else FLAT for i, task in enumerate(TASKS)}
PLAN = RolloutPlan(attempts_per_prompt=2, refill=2)


@pytest.fixture
def collected(tokenizer):
    def run(tasks, key=(0, 0, 0), plan=PLAN, data=None, script=SCRIPT, **parts):
        sampler = ScriptedSampler(script)
        sampler.start(None, tokenizer)
        with JudgeRunner(RuleJudge()) as runner:
            stages = Stages(
                tokenizer=tokenizer, sampler=sampler, judge_runner=runner, plan=plan, selection=form_group,
                advantages=group_advantages, hindsight=NoHindsight(), **parts,
            )  # fmt: skip
            stages.refill.pin(data or RubricDataModule(TASKS, prompts_per_batch=4), plan.refill)
            return collect(tasks, stages, key)

    return run


def naive(tasks, key, rounds):
    """The ids of a batch's prompts, in a plain loop over what is known of the script."""
    data, ids = RubricDataModule(TASKS), [task.id for task in tasks]
    wanted = len(ids)
    for number in range(rounds):
        missing = wanted - sum(SCRIPT[name] is SIGNAL for name in ids)
        further = data.further(missing, derive_seed(*key, number, "refill"), ids)
        ids += [task.id for task in further]
    return ids


@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
@pytest.mark.parametrize("key", [(0, 0, 0), (0, 0, 1), (7, 1, 0)])
def test_the_prompts_of_a_batch_are_those_of_the_plain_loop(collected, rounds, key):
    found = collected(TASKS[:4], key, replace(PLAN, refill=rounds))
    assert [group.task.id for group in found.groups] == naive(TASKS[:4], key, rounds)
    assert len({group.task.id for group in found.groups}) == len(found.groups)
    learned = {e.rollout.task_id for e in found.experiences}
    assert learned == {g.task.id for g in found.groups if SCRIPT[g.task.id] is SIGNAL}
    assert len(learned) <= 4
    assert collection_counts(found)["answers_sampled"] == 2 * len(found.groups)
    curves = collection_metrics(found)
    if rounds:
        assert curves["refill/prompts"] == len(found.groups) - 4
        assert curves["refill/missing"] == 4 - len(learned)
    else:
        assert not any(name.startswith("refill") for name in curves)


def test_a_batch_whose_groups_all_carry_a_signal_asks_for_nothing(collected):
    class NoFurther:
        def further(self, count, seed, without):
            raise AssertionError

    found = collected([TASKS[0], TASKS[3]], data=NoFurther())
    assert (found.refilled, len(found.groups)) == (0, 2)


def test_data_that_runs_out_ends_the_rounds(collected):
    found = collected(
        TASKS[1:3], data=RubricDataModule(TASKS[1:3], prompts_per_batch=1), plan=replace(PLAN, refill=9)
    )
    assert (found.refilled, len(found.groups), found.experiences) == (0, 2, ())
    assert collection_metrics(found)["refill/missing"] == 2.0


def test_prompts_that_are_too_long_are_counted_and_replaced_in_the_next_round(collected):
    long = [make_task(id=f"long{i}", request="word " * 300) for i in range(3)]
    data = RubricDataModule([TASKS[1], *long], prompts_per_batch=1)
    found = collected([TASKS[1]], data=data, plan=replace(PLAN, max_prompt_tokens=100))
    assert found.dropped == {"prompts": 2, "revision_prompts": 0}, "one in each round"
    assert len(found.groups) == 1


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_draw_the_same_prompts(collected, monkeypatch, ranks):
    """Each rank is a thread, which samples its share of the requests."""
    alone = collected(TASKS[:4])
    here, parts, barrier = threading.local(), {}, threading.Barrier(ranks, timeout=30)

    def gathered(value):
        parts[here.rank] = value
        barrier.wait()
        found = [parts[rank] for rank in range(ranks)]
        barrier.wait()
        return found

    def of_rank(rank):
        here.rank = rank
        return collected(TASKS[:4])

    monkeypatch.setattr(herl.rollout.streaming, "rank", lambda: here.rank)
    monkeypatch.setattr(herl.rollout.streaming, "world_size", lambda: ranks)
    monkeypatch.setattr(herl.rollout.streaming, "gather", gathered)
    monkeypatch.setattr(herl.rollout.streaming, "exchanged", lambda own: [*chain(*gathered(own))])
    with ThreadPoolExecutor(ranks) as threads:
        for found in threads.map(of_rank, range(ranks)):
            assert found.refilled == alone.refilled > 0
            assert [group.id for group in found.groups] == [group.id for group in alone.groups]
            assert [e.advantage for e in found.experiences] == [e.advantage for e in alone.experiences]


class DieAt(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 2:
            raise RuntimeError("killed")


def run(tmp_path, *callbacks, resume=None):
    keep = KeepSteps()
    module = module_of(SCRIPT, rollout=PLAN, hindsight=NoHindsight())
    keeps = any(isinstance(one, Checkpoints) for one in callbacks)
    fit(
        module, tmp_path, TASKS, [keep, *callbacks], resume, limit_train_batches=4, enable_checkpointing=keeps
    )  # fmt: skip
    return module, keep.steps


def test_a_resumed_run_draws_the_prompts_of_one_that_was_never_stopped(tmp_path):
    module, steps = run(tmp_path)
    assert any(step.collection.refilled for step in steps[2:])
    first = KeepSteps()
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, first, DieAt(), Checkpoints(str(tmp_path / "c"), every_n_batches=1))
    again, rest = run(tmp_path, resume=str(tmp_path / "c" / "last.ckpt"))
    names = [[group.id for group in step.collection.groups] for step in steps]
    assert [[group.id for group in step.collection.groups] for step in first.steps] == names[:2]
    assert [[group.id for group in step.collection.groups] for step in rest] == names[-len(rest) :]
    assert 2 <= len(rest) < 4
    assert torch.equal(weights(again), weights(module))


def test_answers_of_further_prompts_count_in_the_budget(tmp_path):
    module, steps = run(tmp_path, AnswerBudget(9))
    sampled = [2 * len(step.collection.groups) for step in steps]
    assert sum(sampled) == module.counts["answers_sampled"] >= 9
    assert len(steps) == 2, "without a refill, two batches have 8 answers"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RolloutPlan(refill=1, keep_flat_groups=True), "expected 0 with keep_flat_groups"),
        (lambda: RolloutPlan(refill=-1), "rollout.refill: expected at least 0"),
        (
            lambda: module_of(rollout=PLAN, teacher=Teacher(coef=0.1, flat_groups=True)),
            "expected 0 with teacher.flat_groups",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_batch_of_all_rows_leaves_nothing_to_draw():
    module = module_of(rollout=PLAN)
    with pytest.raises(
        ConfigError, match=r"rollout.refill: expected more .*prompts_per_batch = 12, .*got 12"
    ):
        module.stages.open(RubricDataModule(TASKS, prompts_per_batch=12))
    with_others = RubricDataModule(TASKS, prompts_per_batch=11)
    Refill().pin(with_others, 1)
    Refill().pin(RubricDataModule(TASKS), 1, trains=False)


def test_data_without_further_prompts_is_refused_before_a_model_loads():
    module = module_of(rollout=PLAN)
    with pytest.raises(ConfigError, match=r"rollout.refill: expected a data module .*use rollout.refill=0"):
        module.stages.open(None)
    assert module.policy is None
