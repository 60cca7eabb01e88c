"""Faults injected into the update, and runs that collapse."""

import json
import logging
from contextlib import nullcontext
from functools import partial

import lightning as L
import pytest
import torch

from herl.advantages import group_advantages
from herl.advantages.by_criterion import ByCriterion
from herl.advantages.contrast import Contrast
from herl.advantages.emphasis import emphasized
from herl.callbacks import Alarms, RecordAnswers, RefreshSampler
from herl.data import RubricDataModule
from herl.errors import ConfigError, TrainingError
from herl.hindsight.candidates import tied_best, top_k
from herl.hindsight.revision import RevisionBuilder
from herl.judge.aggregation import all_or_nothing, gated
from herl.judge.rule import RuleJudge
from herl.models.weights import first_not_finite
from herl.rollout.stages import RolloutPlan
from herl.selection import form_group, keep_ranked
from herl.types import Sampling
from herl.update.loss.base import Loss
from herl.update.loss.policy import Mismatch, PolicyLoss
from herl.update.loss.sft import LikelihoodLoss
from tests.support.training import ANSWERS, TASKS, fit, initial, module_of, weights


class FakeNanLoss(Loss):
    """A loss that is NaN in some calls."""

    aggregation, constant_length, entropy_coef = "token_mean", 1, 0.0

    def __init__(self, *calls):
        self.calls, self.called = set(calls), 0
        self.real = PolicyLoss()

    def __call__(self, tokens):
        self.called += 1
        loss, stats = self.real(tokens)
        return (loss * float("nan"), stats) if self.called in self.calls else (loss, stats)


def test_a_step_that_is_no_number_is_skipped_and_its_answers_are_recorded(tmp_path, caplog):
    module = module_of(loss=FakeNanLoss(1), updates_per_batch=2)
    with caplog.at_level(logging.WARNING, logger="herl"):
        fit(module, tmp_path, callbacks=[RecordAnswers(str(tmp_path / "records"))])
    assert (module.counts["optimizer_steps"], module.counts["skipped_steps"]) == (1, 1)
    assert torch.isfinite(weights(module)).all()
    assert not torch.equal(weights(module), initial())
    assert "the gradient of model.embed_tokens.weight is not finite" in caplog.text.replace("policy.", "")
    lines = [
        json.loads(line) for line in (tmp_path / "records" / "answers-00000.jsonl").read_text().splitlines()
    ]
    faulty = {line["task_id"] for line in lines if line["fault"] == "the loss is not finite"}
    assert len(faulty) == 1  # only the group of the skipped step
    assert sum(line["fault"] is not None for line in lines) == 4


def test_a_step_that_is_skipped_leaves_no_trace_in_the_next(tmp_path):
    skipped, never = module_of(loss=FakeNanLoss(1), updates_per_batch=1), module_of(updates_per_batch=1)
    fit(skipped, tmp_path, max_epochs=2)
    fit(never, tmp_path)
    moved = [weights(module) - initial() for module in (skipped, never)]
    assert torch.allclose(moved[0], moved[1], rtol=1e-4, atol=1e-7)  # SGD: the same step, one epoch later


def test_too_many_in_a_row_end_the_run_with_the_tensor_named(tmp_path):
    module = module_of(loss=FakeNanLoss(*range(2, 99)), updates_per_batch=1, max_skipped_steps=2)
    with pytest.raises(
        TrainingError, match=r"the gradient of policy.model.embed_tokens.weight is not finite"
    ) as error:
        fit(module, tmp_path, max_epochs=9)
    assert "3 steps in a row were skipped; module.max_skipped_steps allows 2" in str(error.value)
    assert module.counts["optimizer_steps"] == 1
    assert torch.isfinite(weights(module)).all()


def test_single_ones_do_not_add_up(tmp_path):
    module = module_of(loss=FakeNanLoss(1, 3, 5), updates_per_batch=1, max_skipped_steps=1)
    fit(module, tmp_path, max_epochs=6)
    assert (module.counts["optimizer_steps"], module.counts["skipped_steps"]) == (3, 3)


def test_a_weight_that_is_no_number_is_named(tmp_path):
    class Break(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            with torch.no_grad():
                module.policy.model.layers[1].mlp.up_proj.weight[3, 4] = float("inf")

    module = module_of(max_skipped_steps=0)
    with pytest.raises(
        TrainingError, match=r"the weight policy.model.layers.1.mlp.up_proj.weight is not finite"
    ):
        fit(module, tmp_path, callbacks=[Break()])
    assert first_not_finite(torch.nn.Linear(2, 2)) == "no tensor"


def watched(tmp_path, alarms, answers=ANSWERS, epochs=5, **changes):
    module = module_of(answers, **changes)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[RefreshSampler(), alarms],
    )  # fmt: skip
    trainer.fit(module, RubricDataModule(TASKS, prompts_per_batch=2))
    return module


SAME = {task.id: ["fish"] for task in TASKS}


@pytest.mark.parametrize(
    ("limits", "name", "said"),
    [
        ({"entropy_below": 50.0}, "entropy", "update/entropy was below 50 for 2 batches in a row"),
        ({"truncated_above": -0.5}, "truncated", "train/truncated was above -0.5"),
    ],
)
def test_an_alarm_goes_off_once_for_each_time_that_a_limit_is_broken(tmp_path, caplog, limits, name, said):
    with caplog.at_level(logging.WARNING, logger="herl"):
        module = watched(tmp_path, Alarms(**limits, patience=2))
    assert module.counts[f"alarms_{name}"] == 1
    assert caplog.text.count(said) == 1
    assert f"callbacks.alarms.{name}_" in caplog.text


def test_answers_that_are_all_the_same_set_two_alarms_off(tmp_path):
    module = watched(tmp_path, Alarms(patience=3), SAME)
    assert {name: n for name, n in module.counts.items() if name.startswith("alarms_")} == {
        "alarms_identical": 1,
        "alarms_zero_signal": 1,
    }


def test_kl_to_the_reference_has_an_alarm(tmp_path):
    module = watched(tmp_path, Alarms(kl_above=1e-9, patience=2), loss=PolicyLoss(kl_coef=0.01))
    assert module.counts["alarms_kl"] == 1


def test_steps_that_are_too_large_are_told_with_what_to_lower(tmp_path, caplog):
    module = watched(tmp_path, Alarms(kl_to_old_above=-1.0, clipped_above=-1.0, patience=2), epochs=1)
    assert module.counts["alarms_kl_to_old"] == 1, "no patience: one such step is enough"
    assert "update/kl_to_old was above -1 in a batch, now" in caplog.text
    assert "lower optimizer.lr (usual for 0.5B to 7B: 1e-6 for all weights, 1e-5 for LoRA)" in caplog.text
    module = watched(tmp_path, Alarms(clipped_above=-1.0, patience=2), epochs=2)
    assert module.counts["alarms_clipped"] == 1
    assert "update/clip_fraction_low + update/clip_fraction_high was above -1 for 2" in caplog.text


def test_an_alarm_ends_the_run_if_it_is_told_to(tmp_path):
    with pytest.raises(TrainingError, match="train/identical_groups was above 0.9 for 2 batches in a row"):
        watched(tmp_path, Alarms(patience=2, stop=True), SAME)


def test_a_healthy_run_is_quiet(tmp_path, caplog):
    module = watched(tmp_path, Alarms(patience=1))
    assert not [name for name in module.counts if name.startswith("alarms_")]
    assert "alarm" not in caplog.text


def test_alarms_need_patience():
    with pytest.raises(ConfigError, match="callbacks.alarms.patience: expected at least 1, got 0"):
        Alarms(patience=0)


@pytest.mark.parametrize(
    "changed", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"frequency_penalty": 0.5}]
)
def test_attempts_from_another_distribution_than_the_policys_need_weights(changed):
    other, plain = Sampling(**changed), Sampling()
    with pytest.raises(
        ConfigError, match=r"loss.mismatch.level: expected token \(or sequence\), .*got PolicyLoss without"
    ):
        module_of(rollout=RolloutPlan(attempt=other))
    module_of(rollout=RolloutPlan(attempt=other), loss=PolicyLoss(mismatch=Mismatch(level="token")))
    module_of(rollout=RolloutPlan(attempt=plain, revision=other, heldout=other))
    module_of(rollout=RolloutPlan(attempt=Sampling(stop=["END"])))
    assert not LikelihoodLoss().needs_on_policy, "it learns from selected answers, however they were drawn"
    assert PolicyLoss().needs_on_policy
    assert FakeNanLoss().needs_on_policy, "a loss of one's own, unless it says otherwise"


@pytest.mark.parametrize("loss", [PolicyLoss(revision_ratio="cross_context"), PolicyLoss(), LikelihoodLoss()])
def test_a_ratio_to_the_probability_of_a_revision_needs_one_that_was_drawn(loss):
    greedy = RolloutPlan(revision=Sampling(temperature=0.0))
    message = "rollout.revision.temperature: expected a number above 0 with loss.revision_ratio=cross_context"
    with pytest.raises(ConfigError, match=message) if loss.needs_drawn_revisions else nullcontext():
        module_of(loss=loss, rollout=greedy, hindsight=RevisionBuilder())
    assert loss.needs_drawn_revisions == (getattr(loss, "revision_ratio", "") == "cross_context")
    module_of(loss=loss, rollout=greedy)  # without hindsight


def test_errors_of_a_validation_name_the_keys_that_set_it():
    greedy = RolloutPlan(heldout=Sampling(temperature=0.0))
    with pytest.raises(
        ConfigError, match=r"^validation.attempts: .* with validation.sampling.temperature=0,"
    ):
        module_of(rollout=greedy, validation_attempts=2)
    with pytest.raises(ConfigError, match="^validation.revisions: expected 0 with a hindsight builder that"):
        module_of(validation_revisions=1)


def test_a_stop_string_with_a_special_token_would_never_be_seen():
    stops = Sampling(stop=["###", "<|im_end|>\n"])
    keys = {
        "attempt": "rollout.attempt", "revision": "rollout.revision", "heldout": "validation.sampling"
    }  # fmt: skip
    for name, key in keys.items():
        with pytest.raises(ConfigError, match=rf"{key}.stop: expected texts without special tokens"):
            module_of(rollout=RolloutPlan(**{name: stops}))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: module_of(selection=partial(form_group, top_n=-1)), "selection.top_n: expected at least 0, got -1"),
        (lambda: module_of(selection=partial(form_group, max_quote=0)), "selection.max_quote: expected at least 1"),
        (lambda: module_of(selection=partial(keep_ranked, best=-1)), "selection.best: expected at least 1, got -1"),
        (lambda: RevisionBuilder(candidates=partial(top_k, k=0)), "hindsight.candidates.k: expected at least 1"),
        (
            lambda: RevisionBuilder(candidates=partial(tied_best, max_candidates=-2)),
            "hindsight.candidates.max_candidates: expected at least 1, got -2",
        ),
    ],
)  # fmt: skip
def test_numbers_of_answers_that_would_leave_none_are_refused(make, key):
    with pytest.raises(ConfigError, match=key):
        make()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"advantages": ByCriterion(), "judge": RuleJudge(aggregation=gated)},
            "aggregation: expected a sum of verdicts, since .*got gated.*use aggregation=weighted",
        ),
        (
            {
                "advantages": emphasized(group_advantages, Contrast()),
                "judge": RuleJudge(aggregation=all_or_nothing),
            },
            "got all_or_nothing",
        ),
        (
            {
                "hindsight": RevisionBuilder(),
                "rollout": RolloutPlan(revisions_per_candidate=2, revision=Sampling(temperature=0.0)),
            },
            "rollout.revisions_per_candidate: expected 1 with rollout.revision.temperature=0",
        ),
    ],
)
def test_what_would_be_learned_from_wrongly_is_refused_in_training_and_may_be_measured(
    tmp_path, changes, said
):
    module = module_of(**changes)
    with pytest.raises(ConfigError, match=said):
        fit(module, tmp_path)
    assert module.policy is None, "no model was loaded"
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=tmp_path, callbacks=[RefreshSampler()],
    )  # fmt: skip
    trainer.validate(module_of(**changes), RubricDataModule(TASKS, TASKS, prompts_per_batch=2), verbose=False)
    module_of(**changes | {"judge": RuleJudge(), "rollout": RolloutPlan()}).stages.check_training()
