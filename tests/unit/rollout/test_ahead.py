"""One batch ahead: the numbers of a plain loop that draws each batch before the update on the one before it."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import lightning as L
import numpy as np
import pytest
import torch

from herl import ConfigError, Sampling
from herl.callbacks import AnswerBudget, Checkpoints, HerlCallback, RefreshSampler
from herl.data import RubricDataModule
from herl.data.animals import animals
from herl.errors import JudgeStop, SamplerError, TrainingError
from herl.hindsight.revision import RevisionBuilder
from herl.module import HerlModule
from herl.replay import ReplayBuffer
from herl.rollout.ahead import Batches, check_ahead, check_fresh
from herl.rollout.collect import Collection, collect
from herl.rollout.exchange import Numbers
from herl.rollout.stages import RolloutPlan
from herl.sampler.scripted import ScriptedSampler
from herl.sampler.transformers import TransformersSampler
from herl.sampler.vllm import VLLMSampler
from herl.sampler.vllm_server import VLLMServerSampler
from herl.testing import make_judged, make_rollout
from herl.types import Group, Judgement, Member
from herl.types.plain import plain, restored
from herl.update.loss.dpo import PreferenceLoss
from herl.update.loss.policy import Mismatch, PolicyLoss
from herl.update.loss.sft import LikelihoodLoss
from tests.support.episodes import an_episode
from tests.support.training import KeepSteps, fit, module_of, weights

TASKS = animals().train[:6]  # 3 batches an epoch
CORRECTED = PolicyLoss(mismatch=Mismatch(level="token"))


def plan(ahead=1, **changes):
    sampling = Sampling(max_new_tokens=24)
    settings = {"attempts_per_prompt": 4, "attempt": sampling, "revision": sampling} | changes
    return RolloutPlan(batches_ahead=ahead, **settings)


def module(ahead=1, **parts):
    """A run in which hindsight and replay carry state from batch to batch."""
    settings = {
        "sampler": TransformersSampler(own_weights=True),
        "rollout": plan(ahead),
        "loss": CORRECTED,
        "hindsight": RevisionBuilder(),
        "replay": ReplayBuffer(of="best", uses=None),
        "updates_per_batch": 2,
    }
    return module_of(**(settings | parts))


def run(made, folder, callbacks=(), **trainer):
    """Trains; returns the steps."""
    kept = KeepSteps()
    settings = {"tasks": TASKS, "max_epochs": 2} | trainer
    fit(made, folder, callbacks=[kept, *callbacks], **settings)
    return kept.steps


def numbers(steps):
    """All curves of a run that do not measure time."""
    timed = ("time/", "throughput/", "judge/seconds")
    return [{k: v for k, v in step.metrics.items() if not k.startswith(timed)} for step in steps]


def answers(steps):
    return [
        [(one.rollout, one.judgement.reward) for group in step.collection.groups for one in group.attempts]
        for step in steps
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, one batch ahead, with a checkpoint before each batch."""
    folder = tmp_path_factory.mktemp("whole")
    made = module()
    checkpoints = Checkpoints(str(folder), every_n_batches=1, keep=99)
    steps = run(made, folder, [checkpoints], enable_checkpointing=True)
    return made, steps, folder


class Naive(HerlModule):
    """Draws each batch in the main thread, before the update on the one before."""

    def prompts(self):
        """(epoch, number, prompts) of every batch, read as Lightning reads them."""
        loader = RubricDataModule(TASKS, prompts_per_batch=2).train_dataloader()
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            yield from ((epoch, number, tasks) for number, tasks in enumerate(loader))

    def draw(self, epoch, number, tasks, share):
        self.stages.hindsight.begin_batch(share)
        found = collect(tasks, self.stages, (self.seed, epoch, number))
        self.stages.hindsight.end_batch([group.attempts for group in found.groups])
        return found

    def training_step(self, tasks, batch_idx):
        if not self.counts["batches"]:
            self.batches = self.prompts()
            self.found = self.draw(*next(self.batches), 0.0)
        found, following = self.found, next(self.batches, None)
        if following:
            self.found = self.draw(*following, (self.counts["batches"] + 1) / 6)
        self.collector.collect = lambda *_: found  # the plan draws none ahead
        return super().training_step(tasks, batch_idx)


def test_it_equals_a_plain_loop_in_one_thread(tmp_path, whole, monkeypatch):
    made, steps, _ = whole
    monkeypatch.setattr("tests.support.training.HerlModule", Naive)
    reference = module(ahead=0)
    expected = run(reference, tmp_path)
    assert len(steps) == len(expected) == 6
    assert answers(steps) == answers(expected)
    assert numbers(steps) == numbers(expected)
    assert torch.equal(weights(made), weights(reference))


def test_every_batch_is_one_batch_of_updates_old_and_corrected(whole):
    made, steps, _ = whole
    taken = [0, *(int(step.metrics["progress/optimizer_steps"]) for step in steps)]
    ages = [step.metrics["sampler/staleness"] for step in steps]
    assert ages == [0, *(after - before for before, after in pairwise(taken[:-1]))]
    assert max(ages) == 2  # optimizer steps of a batch
    assert steps[0].metrics["update/mismatch_kl"] < 1e-6 < steps[1].metrics["update/mismatch_kl"]
    assert made.counts["answers_left_over"] == 0


def test_it_is_not_the_synchronous_run(tmp_path, whole):
    synchronous = module(ahead=0)
    steps = run(synchronous, tmp_path)
    assert answers(steps)[0] == answers(whole[1])[0]
    assert not torch.equal(weights(synchronous), weights(whole[0]))
    assert {step.metrics["sampler/staleness"] for step in steps} == {0.0}


@pytest.mark.parametrize("batches", [1, 3, 4])  # within the first epoch, at its end, in the second
def test_a_resumed_run_gives_the_numbers_of_one_that_was_not_stopped(tmp_path, whole, batches):
    made, steps, folder = whole
    [checkpoint] = folder.glob(f"batch-{batches:08d}.ckpt")
    held = torch.load(checkpoint, weights_only=True)["herl"]["ahead"]
    assert tuple(held["key"]) == (0, *divmod(batches, 3))
    resumed = module()
    rest = run(resumed, tmp_path, resume=checkpoint)
    assert answers(rest) == answers(steps[batches:])
    assert numbers(rest) == numbers(steps[batches:])
    assert torch.equal(weights(resumed), weights(made))


def test_a_run_resumed_without_it_trains_on_the_batch_that_is_ready(tmp_path, whole):
    _, steps, folder = whole
    rest = run(module(ahead=0), tmp_path, resume=folder / "batch-00000002.ckpt")
    assert answers(rest)[0] == answers(steps)[2]
    assert [step.metrics["sampler/staleness"] > 0 for step in rest] == [True, False, False, False]


def test_another_batch_size_after_a_resume_draws_anew(tmp_path, whole, caplog):
    folder = whole[2]
    made, kept = module(), KeepSteps()
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[RefreshSampler(), kept],
    )  # fmt: skip
    data = RubricDataModule(TASKS, prompts_per_batch=1)
    trainer.fit(made, data, ckpt_path=folder / "batch-00000002.ckpt", weights_only=True)
    assert [len(step.collection.groups) for step in kept.steps] == [1, 1]
    assert kept.steps[0].metrics["sampler/staleness"] == 0.0
    assert "the 10 answers drawn ahead do not fit the batch, which is drawn now" in caplog.text
    assert made.counts["answers_left_over"] == 10


def test_answers_of_older_weights_are_not_trained_on_without_weights_for_them(tmp_path, whole, caplog):
    made = module(ahead=0, loss=PolicyLoss())
    rest = run(made, tmp_path, resume=whole[2] / "batch-00000002.ckpt")
    assert [step.metrics["sampler/staleness"] for step in rest] == [0.0] * 4
    assert made.counts["answers_left_over"] > 0
    assert "which is drawn now" in caplog.text


class Counting(TransformersSampler):
    """Counts the answers that it is asked for, besides those of the probe."""

    def __init__(self):
        super().__init__(own_weights=True)
        self.asked = 0

    def generate(self, requests):
        self.asked += sum(one.n for one in requests if one.task_id != "probe")
        yield from super().generate(requests)


@pytest.mark.parametrize(
    ("callbacks", "trainer", "updates"),
    [
        (lambda: [AnswerBudget(20)], {"max_epochs": 9}, 2),
        (lambda: [AnswerBudget(25)], {"max_epochs": 9}, 2),  # one more batch
        (lambda: [], {"max_epochs": 9, "max_steps": 4}, 1),
        (lambda: [], {"max_epochs": 1}, 2),
    ],
)
def test_it_ends_like_a_synchronous_run_and_samples_nothing_in_vain(tmp_path, callbacks, trainer, updates):
    counts, asked = [], []
    for ahead in (0, 1):
        made = module(ahead, sampler=Counting(), hindsight=None, updates_per_batch=updates)
        run(made, tmp_path, callbacks(), **trainer)
        counts.append((made.counts["answers_sampled"], made.counts["batches"]))
        asked.append(made.stages.sampler.asked)
    assert counts[0] == counts[1]
    assert asked == [counts[0][0]] * 2


class StopAfter(HerlCallback):
    def __init__(self, batches):
        self.batches = batches

    def on_step(self, trainer, module, step):
        trainer.should_stop = module.counts["batches"] >= self.batches


def test_answers_that_an_early_end_leaves_over_are_counted(tmp_path, caplog):
    made = module(hindsight=None)
    run(made, tmp_path, [StopAfter(2)])
    assert made.counts["answers_left_over"] == 8
    assert "8 answers that were drawn ahead have not been trained on" in caplog.text


class Failing(TransformersSampler):
    """Fails at the batch with this number."""

    def __init__(self, at, error):
        super().__init__(own_weights=True)
        self.left, self.error = at, error

    def generate(self, requests):
        if requests[0].task_id != "probe":
            if not self.left:
                raise self.error
            self.left -= 1
        yield from super().generate(requests)


def no_thread():
    return not any(thread.name == "ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("error", [SamplerError("the server is gone"), JudgeStop("no more money")])
def test_what_fails_beside_an_update_is_raised_after_its_step_was_kept(tmp_path, error):
    made, kept = module(sampler=Failing(2, error), hindsight=None), KeepSteps()
    checkpoints = Checkpoints(str(tmp_path), every_n_batches=9)
    with pytest.raises(type(error), match=str(error)):
        fit(made, tmp_path, tasks=TASKS, callbacks=[kept, checkpoints], enable_checkpointing=True)
    assert no_thread()
    assert len(kept.steps) == made.counts["batches"] == 2
    assert not made.stages.hindsight.state_dict().get("in_batch")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (state["herl"]["counts"]["batches"], state["herl"]["ahead"]) == (2, {})
    resumed = module(hindsight=None)
    rest = run(resumed, tmp_path, resume=tmp_path / "last.ckpt", max_epochs=1)
    assert [step.metrics["sampler/staleness"] for step in rest] == [0.0]
    assert resumed.counts["batches"] == 3


def test_an_error_in_the_update_waits_for_the_thread(tmp_path):
    made = module(hindsight=None)

    def fails(*_):
        raise TrainingError("no memory")

    made.updater.update = fails
    with pytest.raises(TrainingError, match="no memory"):
        run(made, tmp_path)
    assert no_thread()


def test_ctrl_c_does_not_wait_for_answers(tmp_path):
    made = module(hindsight=None)
    going, release = threading.Event(), threading.Event()

    class Endless(TransformersSampler):
        def generate(self, requests):
            if threading.current_thread().name == "ahead":
                going.set()
                release.wait(60)
            yield from super().generate(requests)

    made.stages.sampler.__class__ = Endless

    def interrupted(*_):
        going.wait(60)
        raise KeyboardInterrupt

    made.updater.update = interrupted
    began = time.monotonic()
    try:
        with pytest.raises(SystemExit):
            run(made, tmp_path)
        assert time.monotonic() - began < 30
    finally:
        release.set()
        for thread in threading.enumerate():
            if thread.name == "ahead":
                thread.join(60)


def test_phases_beside_the_update_are_in_the_curves_but_not_in_the_steps_time(whole):
    _, steps, _ = whole
    for step in steps:
        own, beside = step.seconds, step.collection.beside
        assert step.metrics["time/step"] == sum(own.values())
        phases = Counter(own) + Counter(beside)
        assert {k: v for k, v in step.metrics.items() if k.startswith("time/") and k != "time/step"} == (
            pytest.approx({f"time/{name}": spent for name, spent in phases.items()})
        )
    assert [("sample" in step.seconds, "wait" in step.seconds) for step in steps] == [
        (True, True), *[(False, True)] * 4, (False, False),
    ]  # fmt: skip
    assert all("sample" in step.collection.beside for step in steps[1:])


def test_a_batch_survives_a_checkpoint(tmp_path, whole):
    for step in whole[1]:
        torch.save(plain(step.collection, Collection), tmp_path / "one.pt")
        read = torch.load(tmp_path / "one.pt", weights_only=True)
        assert restored(read, {task.id: task for task in TASKS}, Collection) == step.collection
    with pytest.raises(KeyError):
        restored(read, {}, Collection)


def test_so_does_a_batch_whose_tokens_are_arrays_as_ranks_exchange_them(tmp_path):
    rollout = make_rollout(token_ids=(7, 8, 9), logprobs=(-0.5, -0.25, -1.0))
    arrays = replace(
        rollout,
        token_ids=Numbers(np.array(rollout.token_ids, np.int32)),
        logprobs=Numbers(np.array(rollout.logprobs, np.float32)),
    )
    torch.save(plain(make_judged(1.0, rollout=arrays)), tmp_path / "one.pt")
    read = torch.load(tmp_path / "one.pt", weights_only=True)
    assert restored(read, {}) == make_judged(1.0, rollout=rollout)


def test_so_does_an_episode_with_its_calls_and_messages_and_replies_in_arrays(tmp_path):
    episode = an_episode()
    turns = [replace(turn, reply_ids=Numbers(np.array(turn.reply_ids, np.int32))) for turn in episode.turns]
    group = Group(
        id="g", task=TASKS[0], prompt_ids=(1,), attempts=(make_judged(1.0, rollout=replace(episode, turns=tuple(turns))),)
    )  # fmt: skip
    collection = Collection(groups=(group,), experiences=(), dropped={}, episodes=True)
    torch.save(plain(collection, Collection), tmp_path / "one.pt")
    read = restored(
        torch.load(tmp_path / "one.pt", weights_only=True), {task.id: task for task in TASKS}, Collection
    )
    assert read == collection
    back = read.groups[0].attempts[0].rollout
    assert back == episode
    assert [type(turn.reply_ids) for turn in back.turns] == [tuple, tuple]
    assert back.transcript == episode.transcript


def test_so_does_a_batch_with_records_of_ones_own_class(tmp_path):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Scored(Judgement):
        secret: str = "kept out"

    judged = make_judged(0.5)
    scored = Scored(**{one.name: getattr(judged.judgement, one.name) for one in fields(Judgement)})
    task = TASKS[0]
    member = Member(judged=replace(judged, judgement=scored), reward=0.5, bonus=0.25)
    group = Group(id="g", task=task, prompt_ids=(1,), members=(member,), advantages=(0.5,))
    torch.save(plain(group), tmp_path / "one.pt")
    read = restored(torch.load(tmp_path / "one.pt", weights_only=True), {task.id: task})
    assert read == replace(group, members=(Member(judged=judged, reward=0.5, bonus=0.25),), advantages=(0.5,))


# Refusals


class Own(ScriptedSampler):
    live = False


def trainer_with(*callbacks):
    return L.Trainer(accelerator="cpu", logger=False, callbacks=list(callbacks))


DATA = RubricDataModule(TASKS)


@pytest.mark.parametrize(
    ("sampler", "loss", "callbacks", "data", "message"),
    [
        (TransformersSampler(), CORRECTED, [RefreshSampler()], DATA, "sampler.own_weights: expected true"),
        (ScriptedSampler({}), CORRECTED, [RefreshSampler()], DATA, "got ScriptedSampler, which reads the policy"),
        (VLLMSampler(), CORRECTED, [RefreshSampler()], DATA, "expected 0 with sampler=vllm, whose engine shares"),
        (Own({}), PolicyLoss(), [RefreshSampler()], DATA, "loss.mismatch.level: expected token or sequence"),
        (Own({}), CORRECTED, [RefreshSampler(every_n_steps=5)], DATA, "every_n_steps: expected 1 with rollout"),
        (Own({}), CORRECTED, [RefreshSampler(every_n_steps=None)], DATA, "every_n_steps: expected 1"),
        (Own({}), CORRECTED, [], DATA, "every_n_steps: expected 1"),
        (Own({}), CORRECTED, [RefreshSampler()], None, "with a method `following`, .* got 1 and NoneType"),
    ],
)  # fmt: skip
def test_combinations_that_cannot_work_are_refused(sampler, loss, callbacks, data, message):
    stages = module(sampler=sampler).stages
    with pytest.raises(ConfigError, match=message):
        check_ahead(trainer_with(*callbacks), data, stages, corrected=not loss.needs_on_policy)


@pytest.mark.parametrize("loss", [CORRECTED, LikelihoodLoss(), PreferenceLoss()])
@pytest.mark.parametrize("sampler", [Own({}), VLLMServerSampler("weights", urls=["http://x"])])
def test_others_are_not(loss, sampler):
    stages = module(sampler=sampler).stages
    check_ahead(trainer_with(RefreshSampler()), DATA, stages, corrected=not loss.needs_on_policy)
    assert isinstance(DATA, Batches)


TOO_SELDOM = [[RefreshSampler(every_n_steps=50)], [RefreshSampler(every_n_steps=None)], []]


@pytest.mark.parametrize("callbacks", TOO_SELDOM)
@pytest.mark.parametrize("sampler", [VLLMSampler(), TransformersSampler(own_weights=True), Own({})])
def test_answers_of_older_weights_need_importance_weights(sampler, callbacks):
    stages = module(0, sampler=sampler).stages
    with pytest.raises(
        ConfigError, match="every_n_steps: expected 1 with loss.mismatch.level=none, which does"
    ):
        check_fresh(trainer_with(*callbacks), stages, corrected=False)
    check_fresh(trainer_with(*callbacks), stages, corrected=True)
    check_fresh(trainer_with(RefreshSampler()), stages, corrected=False)


@pytest.mark.parametrize("callbacks", TOO_SELDOM)
@pytest.mark.parametrize("sampler", [TransformersSampler(), ScriptedSampler({})])
def test_the_live_policy_needs_no_refresh(sampler, callbacks):
    check_fresh(trainer_with(*callbacks), module(0, sampler=sampler).stages, corrected=False)


def test_a_run_in_python_is_refused_stale_answers(tmp_path):
    """Also where the sampler learns at its start that it needs a copy."""

    class Sharded(TransformersSampler):
        def start(self, policy, tokenizer):
            super().start(policy, tokenizer)
            self.live = False

    made = module(0, sampler=Sharded(), loss=PolicyLoss())
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=1, limit_val_batches=0, default_root_dir=tmp_path,
        callbacks=[RefreshSampler(every_n_steps=50)],
    )  # fmt: skip
    with pytest.raises(ConfigError, match="every_n_steps: expected 1 with loss.mismatch.level=none"):
        trainer.fit(made, DATA)
    assert not made.counts["batches"]


def test_a_run_in_python_is_checked_before_it_trains(tmp_path):
    made = module(sampler=TransformersSampler())
    with pytest.raises(ConfigError, match="sampler.own_weights: expected true"):
        run(made, tmp_path)
    assert not made.counts["batches"]


@pytest.mark.parametrize("value", [2, -1])
def test_other_numbers_are_refused(value):
    with pytest.raises(ConfigError, match=f"rollout.batches_ahead: expected 0 or 1, got {value}"):
        plan(value)
