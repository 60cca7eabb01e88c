"""HerlModule with a real model and trainer on scripted answers."""

import asyncio
import re
from copy import deepcopy
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from herl import ConfigError, Sampling
from herl.callbacks import AnswerBudget, BestCheckpoint, HerlCallback, RefreshSampler
from herl.callbacks.refresh_sampler import compare
from herl.data import RubricDataModule
from herl.hindsight.revision import RevisionBuilder
from herl.models.pretrained import PretrainedModel
from herl.rollout.stages import RolloutPlan
from herl.sampler.transformers import TransformersSampler
from herl.testing import make_experience, make_rollout, make_task
from herl.update.batch import split_by_group
from herl.update.loss.policy import PolicyLoss
from herl.update.schedule import learning_rate_share
from tests.support.training import TASKS, fit, initial, module_of, weights


def test_the_end_of_a_run_may_be_its_best(tmp_path):
    best = BestCheckpoint(str(tmp_path))
    trainer = fit(module_of(), tmp_path, callbacks=[best], enable_checkpointing=True)
    best.keep_if_best(trainer, 0.5)
    first = (tmp_path / "best.ckpt").stat()
    best.keep_if_best(trainer, 0.4)
    assert (tmp_path / "best.ckpt").stat().st_mtime_ns == first.st_mtime_ns
    assert (float(best.best_model_score), Path(best.best_model_path)) == (0.5, tmp_path / "best.ckpt")
    assert "optimizer_states" not in torch.load(tmp_path / "best.ckpt", weights_only=True)


def test_a_run_in_a_notebook_ends(tmp_path):
    async def cell():  # whose thread has a running event loop
        return fit(module_of(updates_per_batch=1), tmp_path).global_step

    assert asyncio.run(cell()) == 1


def test_a_batch_becomes_that_many_optimizer_steps(tmp_path):
    for updates, steps in ((1, 1), (2, 2), (5, 2)):  # never more than groups
        module = module_of(updates_per_batch=updates)
        trainer = fit(module, tmp_path)
        assert module.counts["optimizer_steps"] == trainer.global_step == steps
        assert not torch.equal(weights(module), initial())


def test_groups_without_signal_take_no_step_and_change_nothing(tmp_path):
    module = module_of({task.id: ["fish"] for task in TASKS}, loss=PolicyLoss(entropy_coef=0.1))
    fit(module, tmp_path)
    assert module.counts["optimizer_steps"] == 0
    assert torch.equal(weights(module), initial())


def test_the_step_does_not_depend_on_micro_batch_size(tmp_path):
    found = []
    for tokens in (1, 60, 10**6):
        module = module_of(micro_batch_tokens=tokens, hindsight=RevisionBuilder())
        fit(module, tmp_path)
        found.append(weights(module) - initial())
    for other in found[1:]:
        assert float((other - found[0]).norm() / found[0].norm()) < 1e-5


def test_no_reference_at_kl_0_and_an_unregistered_one_above(tmp_path):
    without = module_of()
    fit(without, tmp_path)
    assert without.updater.reference is None
    with_kl = module_of(loss=PolicyLoss(kl_coef=0.1))
    fit(with_kl, tmp_path)
    assert with_kl.updater.reference is not None
    assert not any("reference" in name for name in with_kl.state_dict())
    assert len(list(with_kl.parameters())) == len(list(without.parameters()))


def test_kl_to_the_reference_pulls_the_policy_back(tmp_path):
    def distance(kl_coef):
        loss = PolicyLoss(kl_coef=kl_coef)
        module = module_of(loss=loss, updates_per_batch=1)
        fit(module, tmp_path, max_epochs=6)
        return float((weights(module) - initial()).norm())

    assert distance(5.0) < distance(0.0)


@pytest.mark.parametrize(("updates", "passes"), [(1, 1), (2, 3)])
def test_no_old_logprob_pass_before_the_first_step(tmp_path, updates, passes, monkeypatch):
    """With one micro-batch per step, k steps cost k passes with gradient and k - 1 without."""
    calls = []
    import herl.update.scorer as place

    real = place.answer_logprobs
    monkeypatch.setattr(place, "answer_logprobs", lambda *a, **k: calls.append(1) or real(*a, **k))
    fit(module_of(updates_per_batch=updates, packing="shared"), tmp_path)
    assert len(calls) == passes


def test_answer_budget_ends_the_run(tmp_path):
    module = module_of()
    fit(module, tmp_path, callbacks=[AnswerBudget(20)], max_epochs=10)
    assert module.counts["answers_sampled"] == 24  # 8 a batch: the batch that reaches the budget ends it


def test_a_budget_of_tokens_ends_the_run_and_can_be_the_axis_of_its_curves(tmp_path):
    steps = []

    class Watching(HerlCallback):
        def on_step(self, trainer, module, step):
            groups = step.collection.groups
            answers = [one for group in groups for one in (*group.attempts, *group.revisions)]
            steps.append(sum(len(one.rollout.token_ids) for one in answers))

    module = module_of(log_over="tokens_sampled")
    fit(module, tmp_path, callbacks=[AnswerBudget(tokens=100), AnswerBudget(), Watching()], max_epochs=50)
    assert module.counts["tokens_sampled"] == sum(steps) >= 100 > sum(steps[:-1])
    assert module.counts[module.log_over] == sum(steps)
    assert (
        AnswerBudget(answers=4, tokens=100).share_spent({"answers_sampled": 1, "tokens_sampled": 50}) == 0.5
    )
    with pytest.raises(
        ConfigError, match=r"callbacks.answer_budget.tokens: expected at least 1, or null, got 0"
    ):
        AnswerBudget(tokens=0)


def test_a_run_that_comes_back_with_its_budget_spent_samples_nothing(tmp_path):
    budget = {"callbacks": [AnswerBudget(20)], "max_epochs": 10}
    fit(module_of(), tmp_path, **budget).save_checkpoint(tmp_path / "end.ckpt")
    module = module_of()
    fit(module, tmp_path, resume=tmp_path / "end.ckpt", **budget)
    assert module.counts["answers_sampled"] == 24
    with pytest.raises(ConfigError, match="^seed: expected the checkpoint's 0, got 1: a resumed run cannot"):
        fit(module_of(seed=1), tmp_path, resume=tmp_path / "end.ckpt", **budget)


def test_a_live_sampler_is_told_the_version_before_every_batch(tmp_path):
    seen = []

    class Watching(TransformersSampler):
        def load_weights(self, named_tensors, version):
            seen.append(version)
            super().load_weights(named_tensors, version)

    plan = RolloutPlan(attempts_per_prompt=4, attempt=Sampling(max_new_tokens=24))
    module = module_of(sampler=Watching(), rollout=plan, updates_per_batch=1)
    fit(module, tmp_path, max_epochs=3)
    assert seen == sorted(set(seen))
    assert seen[0] == 0


def test_refresh_waits_for_n_steps_where_the_sampler_has_its_own_weights():
    module = module_of()
    module.stages.sampler.live = False
    versions = []
    module.stages.sampler.load_weights = lambda tensors, version: versions.append(version)
    refresh = RefreshSampler(every_n_steps=3, probe_limit=1e-3)
    same = torch.tensor([-1.0, -2.0])
    refresh._probe = lambda module: compare(
        same, same, None
    )  # the fake's log-probs do not come from a policy
    tried = []
    refresh._try_rows = lambda module: tried.append(len(versions))
    module.record = lambda metrics: None
    module.policy = PretrainedModel(path="tiny").load()
    refresh.on_train_epoch_start(None, module)
    for steps in range(1, 8):
        module.counts["optimizer_steps"] = steps
        refresh.on_train_batch_start(None, module, None, 0)
    refresh.on_validation_start(None, module)
    assert versions == [0, 3, 6, 7]
    assert tried == [0, 1, 2, 3], "before the weights arrive, which wake a sleeping engine"


def experience(group):
    rollout = make_rollout(group_id=group)
    return make_experience(rollout, reward=1.0, advantage=1.0)


def test_experiences_are_split_by_whole_groups():
    experiences = [experience(name) for name in "aaabbcdd"]
    parts = split_by_group(experiences, 2)
    assert [[e.rollout.group_id for e in part] for part in parts] == [list("aaabb"), list("cdd")]
    assert [len(part) for part in split_by_group(experiences, 9)] == [3, 2, 1, 2]
    assert split_by_group([], 2) == []


@pytest.mark.parametrize(
    ("schedule", "step", "warmup", "progress", "share"),
    [
        ("constant", 0, 0, 0.0, 1.0),
        ("constant", 0, 3, 0.9, 0.25),
        ("constant", 9, 3, 0.9, 1.0),
        ("linear", 9, 0, 0.25, 0.75),
        ("cosine", 9, 0, 0.5, 0.5),
        ("cosine", 9, 0, 1.0, 0.0),
    ],
)
def test_learning_rate_share(schedule, step, warmup, progress, share):
    assert learning_rate_share(schedule, step, warmup, progress) == pytest.approx(share)


def test_the_learning_rate_falls_over_the_answer_budget(tmp_path):
    rates = []

    class Watching(HerlCallback):
        def on_step(self, trainer, module, step):
            rates.append(step.metrics["update/learning_rate"])

    module = module_of(schedule="linear", updates_per_batch=1)
    fit(module, tmp_path, callbacks=[AnswerBudget(32), Watching()], max_epochs=100)
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])  # 8 answers a batch


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updates_per_batch": 0}, "module.updates_per_batch: expected at least 1, got 0"),
        ({"warmup_steps": -1}, "module.warmup_steps: expected at least 0, got -1"),
        ({"max_grad_norm": 0.0}, "module.max_grad_norm: expected a number above 0, got 0"),
        ({"max_skipped_steps": -1}, "module.max_skipped_steps: expected at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        module_of(**settings)


def test_what_the_optimizer_refuses_is_an_error_of_ours(tmp_path):
    with pytest.raises(ConfigError, match="optimizer: Invalid learning rate: -1"):
        fit(module_of(optimizer=partial(torch.optim.AdamW, lr=-1.0)), tmp_path)


def test_heldout_prompts_that_are_too_long_are_dropped_and_counted(tmp_path):
    long = make_task(id="long", request="Describe the otter. " * 40)
    heldout = [make_task(id="t0"), long]
    module = module_of(rollout=RolloutPlan(attempts_per_prompt=4, max_prompt_tokens=60))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[RefreshSampler()],
    )  # fmt: skip
    trainer.validate(module, RubricDataModule(TASKS, heldout, prompts_per_batch=2), verbose=False)
    assert trainer.callback_metrics["heldout/dropped_prompts"] == 1.0
    assert trainer.callback_metrics["heldout/reward"] == pytest.approx(0.6)


def test_callbacks_find_a_steps_metrics_in_the_trainer(tmp_path):
    """As with module.log, so that Lightning's own callbacks can monitor them."""
    found = []

    class Reads(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            metrics = outputs["step"].metrics
            found.append({n: float(v) for n, v in trainer.callback_metrics.items()})
            for name, value in found[-1].items():
                assert value == pytest.approx(metrics[name]) or value != value
            assert float(trainer.progress_bar_metrics["train/reward"]) == pytest.approx(
                metrics["train/reward"]
            )

    fit(module_of(), tmp_path, callbacks=[Reads()])
    assert {"train/reward", "update/loss", "time/update"} <= found[-1].keys()
    assert not any("_criterion/" in name for name in found[-1])


def test_a_run_whose_prompts_are_all_too_long_says_so(tmp_path, caplog):
    module = module_of(rollout=RolloutPlan(attempts_per_prompt=4, max_prompt_tokens=3))
    fit(module, tmp_path)
    assert torch.equal(weights(module), initial())
    assert "nothing was trained: all prompts of the run have more than 3 tokens" in caplog.text


class CopyingSampler(TransformersSampler):
    """Samples from a copy of the policy, which is refreshed and probed."""

    def start(self, policy, tokenizer):
        super().start(deepcopy(policy), tokenizer)
        self.live = False


def test_rows_are_tried_in_the_numerics_that_train_them(tmp_path, monkeypatch):
    seen = []

    def choose(model, device):
        seen.append(torch.is_autocast_enabled("cpu"))
        return "shared"

    monkeypatch.setattr("herl.update.updater.choose_packing", choose)
    plan = RolloutPlan(attempts_per_prompt=2, attempt=Sampling(max_new_tokens=4))
    module = module_of(sampler=CopyingSampler(), rollout=plan, packing="auto")
    fit(module, tmp_path, precision="bf16-mixed", limit_train_batches=1)
    assert seen == [True]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda weights: weights.pop("policy.model.norm.weight"),
            "where ['policy.model.norm.weight'] are missing",
        ),
        (lambda weights: weights.update(x=torch.ones(1)), "and ['x'] are unknown"),
        (
            lambda weights: weights.update({"policy.model.norm.weight": torch.ones(3)}),
            "where policy.model.norm.weight has the shape (3,) for (96,)",
        ),
    ],
)
def test_weights_of_another_model_are_told_in_one_line(tmp_path, change, expected):
    module = module_of()
    fit(module, tmp_path)
    found = dict(module.state_dict())
    module.load_state_dict(found)
    change(found)
    with pytest.raises(ConfigError, match=re.escape(expected)):
        module.load_state_dict(found)


def test_a_part_of_the_weights_may_be_loaded(tmp_path):
    module = module_of()
    fit(module, tmp_path)
    loaded = module.load_state_dict({"policy.model.norm.weight": torch.zeros(96)}, strict=False)
    assert "policy.model.embed_tokens.weight" in loaded.missing_keys
    assert not module.policy.model.norm.weight.any()
