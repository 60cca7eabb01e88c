"""A batch that fails leaves no trace: the run goes on, from the checkpoint of the error, as one that never failed."""

import time
from datetime import timedelta
from functools import partial
from unittest import mock

import pytest
import torch

from herl import ConfigError
from herl.callbacks import Checkpoints
from herl.clock import PhaseClock
from herl.data import RubricDataModule
from herl.data.animals import animals
from herl.distributed import gather, new_group, rank
from herl.errors import AbstentionLimit, JudgeStop, SamplerError
from herl.hindsight.gate import gated
from herl.hindsight.revision import RevisionBuilder
from herl.judge import JudgeRunner
from herl.judge.rule import RuleJudge
from herl.replay import ReplayBuffer
from herl.rollout import collect
from herl.rollout.ahead import Collector
from herl.rollout.stages import RolloutPlan
from herl.sampler.scripted import ScriptedSampler
from herl.sampler.transformers import TransformersSampler
from herl.testing import make_task
from herl.types import Sampling
from herl.update.loss.policy import Mismatch, PolicyLoss
from tests.support.ranks import run_on_ranks
from tests.support.training import KeepSteps, fit, module_of, weights
from tests.unit.rollout.test_ahead import answers, numbers

TASKS = animals().train[:8]  # 4 batches of 2 an epoch
SEED, FAILS_IN = 3, 4
"""The number of the batch that fails, the first of the second epoch: replay and difficulty know its prompts."""


class Failing(TransformersSampler):
    """Counts the rounds of each batch, and fails in one of them, once."""

    def __init__(self, batch=None, number=0, error=None):
        super().__init__(own_weights=True)
        self.at, self.error = (batch, number), error
        self.rounds, self.batch, self.drawn = [], -1, 0

    def generate(self, requests):
        if not requests or requests[0].task_id != "probe":
            if self.error is not None and (self.batch, self.drawn) == self.at:
                raise self.error
            self.drawn += 1
        yield from super().generate(requests)


class Builder(RevisionBuilder):
    """Has state, which its prompts depend on, and tells the sampler of each batch."""

    def __init__(self):
        super().__init__()
        self.built, self.batches, self.sampler = 0, 0, None

    def begin_batch(self, progress):
        if self.sampler.batch >= 0:
            self.sampler.rounds.append(self.sampler.drawn)
        self.sampler.batch, self.sampler.drawn = self.batches, 0
        self.batches += 1

    def build(self, task, group):
        self.built += 1
        return super().build(task, group)[: self.built % 3]

    def state_dict(self):
        return {"built": self.built, "batches": self.batches}

    def load_state_dict(self, state):
        self.built, self.batches = state.get("built", 0), state.get("batches", 0)


def module(ahead=0, sampler=None, **changes):
    sampler = sampler or Failing()
    builder = Builder()
    builder.sampler = sampler
    sampling = Sampling(max_new_tokens=16)
    plan = RolloutPlan(
        attempts_per_prompt=2, attempt=sampling, revision=sampling, refill=2, skip_below=0.6, skip_chance=0.5,
        batches_ahead=ahead,
    )  # fmt: skip
    settings = {
        "sampler": sampler,
        "rollout": plan,
        "hindsight": builder,
        "hindsight_gate": partial(gated, below_median=True, window=7),
        "judge_runner": partial(JudgeRunner, window=5, max_abstention=0.9),
        "replay": ReplayBuffer(of="best", size=2, uses=2, max_prompts=6),
        "loss": PolicyLoss(mismatch=Mismatch(level="token")),
        "updates_per_batch": 2,
        "seed": SEED,
    }
    return module_of(**(settings | changes))


def run(made, folder, **changes):
    """Trains for two epochs; returns the steps. A run that stops saves a checkpoint."""
    kept = KeepSteps()
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(str(folder), every_n_batches=99)
    settings = {
        "tasks": TASKS,
        "max_epochs": 2,
        "callbacks": [kept, checkpoints],
        "enable_checkpointing": True,
    }
    try:
        fit(made, folder, **(settings | changes))
    finally:
        made.steps = kept.steps
    return kept.steps


def state_of(made):
    stages = made.stages
    found = {
        "replay": stages.replay.state_dict(),
        "hindsight": stages.hindsight.state_dict(),
        "difficulty": stages.difficulty.state_dict(),
        "judge": stages.judge_runner.abstentions.state_dict(),
    }
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    made = module()
    steps = run(made, tmp_path_factory.mktemp("whole"))
    made.stages.sampler.rounds.append(made.stages.sampler.drawn)
    assert len(steps) == 8
    return made, steps


def test_the_runs_of_this_file_have_rounds_and_state(whole):
    made, steps = whole
    assert made.stages.sampler.rounds[FAILS_IN] == 4, "attempts and revisions, then those of a refill"
    assert steps[FAILS_IN].metrics["replay/recalled"] > 0
    assert all(len(state) for state in state_of(made).values())
    assert len(made.stages.replay.state_dict()) == 6, "prompts are forgotten"


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (0, SamplerError("gone")),
        (1, JudgeStop("no money")),
        (2, JudgeStop("no money")),
        (3, SamplerError("gone")),
    ],
)
def test_a_run_that_failed_in_a_round_and_went_on_gives_the_numbers_of_one_that_did_not(
    tmp_path, whole, number, error
):
    made, steps = whole
    failed = module(sampler=Failing(FAILS_IN, number, error))
    with pytest.raises(type(error), match=str(error)):
        run(failed, tmp_path / "a")
    assert answers(failed.steps) == answers(steps[:FAILS_IN])
    resumed = module()
    rest = run(resumed, tmp_path / "b", resume=tmp_path / "a" / "last.ckpt")
    assert answers(rest) == answers(steps[FAILS_IN:])
    assert numbers(rest) == numbers(steps[FAILS_IN:])
    assert state_of(resumed) == state_of(made)
    assert torch.equal(weights(resumed), weights(made))


@pytest.mark.parametrize("number", [1, 2])
def test_one_batch_ahead_it_gives_those_of_a_run_that_drew_this_batch_after_the_update(
    tmp_path, number, monkeypatch
):
    failed = module(ahead=1, sampler=Failing(FAILS_IN, number, SamplerError("gone")))
    with pytest.raises(SamplerError, match="gone"):
        run(failed, tmp_path / "a")
    resumed = module(ahead=1)
    rest = run(resumed, tmp_path / "b", resume=tmp_path / "a" / "last.ckpt")

    real = Collector.during_update
    late = (SEED, *divmod(FAILS_IN - 1, 4))
    monkeypatch.setattr(
        Collector, "during_update", lambda self, key, share: real(self, key, 1.0 if key == late else share)
    )
    made = module(ahead=1)
    steps = run(made, tmp_path / "c")
    assert answers(failed.steps) == answers(steps[:FAILS_IN])
    assert answers(rest) == answers(steps[FAILS_IN:])
    assert numbers(rest) == numbers(steps[FAILS_IN:])
    assert state_of(resumed) == state_of(made)
    assert torch.equal(weights(resumed), weights(made))


@pytest.mark.parametrize(("ahead", "batch"), [(0, FAILS_IN), (1, FAILS_IN), (1, 0)])
def test_a_batch_whose_update_fails_is_drawn_again_or_kept(tmp_path, ahead, batch):
    made = module(ahead)
    steps = run(made, tmp_path / "whole")
    failed = module(ahead)
    real = failed.updater.update

    def update(*arguments):
        if failed.counts["batches"] == batch:
            raise ConfigError("no such setting")
        return real(*arguments)

    failed.updater.update = update
    with pytest.raises(ConfigError, match="no such setting"):
        run(failed, tmp_path / "a")
    held = torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)["herl"]["ahead"]
    assert bool(held) == bool(ahead and batch)
    resumed = module(ahead)
    rest = run(resumed, tmp_path / "b", resume=tmp_path / "a" / "last.ckpt")
    assert answers(rest) == answers(steps[batch:])
    assert numbers(rest) == numbers(steps[batch:])
    assert state_of(resumed) == state_of(made)
    assert torch.equal(weights(resumed), weights(made))


class Silent(RuleJudge):
    """Abstains in one batch."""

    def __init__(self, sampler):
        super().__init__()
        self.sampler = sampler

    async def judge(self, task, rollout):
        if self.sampler.batch == 2:
            raise RuntimeError("silent")
        return await super().judge(task, rollout)


@pytest.mark.parametrize("ahead", [0, 1])
def test_after_too_many_abstentions_the_window_is_empty_and_the_rest_is_as_before(tmp_path, ahead):
    sampler = Failing()
    failed = module(ahead, sampler=sampler, judge=Silent(sampler))
    with pytest.raises(AbstentionLimit):
        run(failed, tmp_path / "a")
    saved = torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)["herl"]
    assert saved["counts"]["batches"] == 2
    assert saved["judge"]["window"] == []
    assert saved["judge"]["seen"] == saved["counts"]["answers_sampled"]
    before = module(ahead)
    run(before, tmp_path / "b", max_epochs=1, limit_train_batches=2)
    assert saved["replay"] == before.stages.replay.state_dict()
    assert saved["hindsight"] == before.stages.hindsight.state_dict()
    rest = run(module(ahead), tmp_path / "c", resume=tmp_path / "a" / "last.ckpt", max_epochs=1)
    assert len(rest) == 2


# One rank fails

SCRIPTED = [make_task(id=f"t{n}", request=f"Describe animal {n}.") for n in range(8)]


def _failing_on_one_rank(real):
    def work(*arguments, **settings):
        if rank() == 1:
            raise ConfigError("only here")
        return real(*arguments, **settings)

    return work


def _batch_that_fails_on_one_rank(where, ahead):
    """All ranks raise the error within seconds, and none keeps a trace of the batch."""
    texts = {task.id: ["", "fish river"] for task in SCRIPTED}
    sampler = ScriptedSampler(texts, {task.id: ["fish"] for task in SCRIPTED})
    plan = RolloutPlan(attempts_per_prompt=2, batches_ahead=ahead, refill=1)
    replay = ReplayBuffer(of="best")
    made = module_of(sampler=sampler, rollout=plan, hindsight=RevisionBuilder(), replay=replay)
    sampler.start(None, made.stages.tokenizer)
    data = RubricDataModule(SCRIPTED, prompts_per_batch=2)
    data.following = lambda epoch, number: (epoch, number + 1, SCRIPTED[2:4])
    made.stages.open(data)
    collector = Collector(made.stages, PhaseClock(), data)
    collector._group = new_group(timedelta(seconds=60))
    owner = made.stages.hindsight.builder if where == "build" else collect
    with made.stages.judge_runner:
        collector.collect(SCRIPTED[:2], (0, 0, 0), 0.0)
        before, began = state_of(made), time.monotonic()
        with mock.patch.object(owner, where, _failing_on_one_rank(getattr(owner, where))):
            if ahead:
                with collector.during_update((0, 0, 0), 0.5):
                    assert gather(rank()) == [0, 1], "the update goes on"
            with pytest.raises(ConfigError, match="only here"):
                collector.collect(SCRIPTED[2:4], (0, 0, 1), 0.5)
        assert time.monotonic() - began < 30
    assert state_of(made) == before
    assert gather(rank()) == [0, 1], "so all can save a checkpoint together"


def _each_place_now_and_ahead():
    for where in ("open_groups", "build", "compare", "experiences_of"):
        for ahead in (0, 1):
            _batch_that_fails_on_one_rank(where, ahead)


@pytest.mark.integration
def test_an_error_on_one_rank_ends_the_batch_on_all(tmp_path):
    run_on_ranks(_each_place_now_and_ahead, 2, tmp_path)
