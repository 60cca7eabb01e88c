"""Likelihood and preference losses against autograd of their definitions on a real model."""

import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from herl.advantages import ones
from herl.errors import ConfigError, TrainingError
from herl.rollout.stages import RolloutPlan
from herl.selection import keep_ranked
from herl.testing import make_experience, make_judged, make_rollout, make_task
from herl.update.loss.dpo import PreferenceLoss
from herl.update.loss.sft import LikelihoodLoss
from herl.update.scorer import Scorer
from tests.support.experiences import several
from tests.support.naive import padded_logprobs
from tests.support.training import KeepSteps, fit, initial, module_of, weights

PAIR = partial(keep_ranked, worst=1)


def pairs(groups=3, seed=0):
    rng = random.Random(seed)
    found = []
    for group in range(groups):
        context = [rng.randrange(3, 900) for _ in range(rng.randint(4, 20))]
        for index, advantage in enumerate(rng.sample((0.7, -0.7), 2)):
            rollout = make_rollout(
                id=f"{group}/{index}",
                group_id=str(group),
                prompt_ids=context,
                token_ids=[rng.randrange(3, 900) for _ in range(rng.randint(1, 12))],
            )
            found.append(make_experience(rollout, advantage=advantage))
    return found


def scorer(policy, loss, *, reference=None, max_tokens=10**6, packing="shared"):
    return Scorer(
        policy=policy,
        reference=reference,
        loss=loss,
        temperature=1.0,
        max_tokens=max_tokens,
        packing=packing,
        device=torch.device("cpu"),
    )


def gradient(policy):
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def answer_sums(model, experiences):
    logprobs, _ = padded_logprobs(model, experiences)
    return [one.sum() for one in logprobs.split([len(e.rollout.token_ids) for e in experiences])]


@pytest.fixture
def moved(policy):
    """A policy that has left its reference."""
    import copy

    other = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return other


@pytest.mark.parametrize("packing", ["shared", "single"])
@pytest.mark.parametrize("max_tokens", [1, 10**6])  # 1: the two answers of a pair never stand together
def test_the_gradient_of_a_preference_step_is_that_of_dpo(policy, moved, packing, max_tokens):
    experiences, beta = pairs(), 0.3
    reference = [float(one.detach()) for one in answer_sums(policy, experiences)]
    sums = answer_sums(moved, experiences)
    margins = []
    for start in range(0, len(experiences), 2):
        good, bad = sorted((start, start + 1), key=lambda place: -experiences[place].advantage)
        margins.append(beta * ((sums[good] - reference[good]) - (sums[bad] - reference[bad])))
    expected = -torch.nn.functional.logsigmoid(torch.stack(margins)).mean()
    expected.backward()
    wanted = gradient(moved).clone()

    moved.zero_grad()
    loss = PreferenceLoss(beta=beta)
    made = scorer(moved, loss, reference=policy, max_tokens=max_tokens, packing=packing)
    prepared, stats = loss.prepare(experiences, made)
    for batch in made.micro_batches(prepared):
        made.compute_loss(batch)[0].backward()
    assert float((gradient(moved) - wanted).norm() / wanted.norm()) < 1e-5
    total, count = stats.means["preference_loss"]
    assert float(total / count) == pytest.approx(float(expected.detach()), rel=1e-5)
    correct, _ = stats.means["preference_accuracy"]
    assert int(correct) == sum(float(margin.detach()) > 0 for margin in margins)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_the_likelihood_loss_is_the_weighted_mean_of_log_probs(policy, aggregation):
    experiences = several()
    sums = answer_sums(policy, experiences)
    lengths = [len(e.rollout.token_ids) for e in experiences]
    if aggregation == "token_mean":
        expected = -sum(e.advantage * s for e, s in zip(experiences, sums, strict=True)) / sum(lengths)
    else:
        terms = zip(experiences, sums, lengths, strict=True)
        expected = -sum(e.advantage * s / n for e, s, n in terms) / len(lengths)
    made = scorer(policy, LikelihoodLoss(aggregation=aggregation), max_tokens=60)
    found = sum(float(made.compute_loss(batch)[0].detach()) for batch in made.micro_batches(experiences))
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)


def test_the_best_answers_stay_and_bad_ones_are_not_learned_from():
    attempts = [make_judged(r, id=f"group/{i}") for i, r in enumerate((0.2, 0.6, 0.4))]
    revision = make_judged(0.5, id="group/1/0", parent_id="group/1")
    kept = keep_ranked(make_task(), attempts, [revision], {}, 0, best=3, at_least=0.45)
    assert [member.reward for member in kept] == [0.6, 0.5]
    assert keep_ranked(make_task(), attempts, [], {}, 0, at_least=0.7) == []


def test_the_best_and_the_worst_answer_form_a_pair():
    attempts = [make_judged(r, id=f"group/{i}") for i, r in enumerate((0.4, 0.2, 0.6))]
    assert [member.reward for member in keep_ranked(make_task(), attempts, [], {}, 0, worst=1)] == [0.6, 0.2]
    assert keep_ranked(make_task(), attempts[:1], [], {}, 0, worst=1) == []


def test_an_impossible_preference_loss_is_refused():
    with pytest.raises(ConfigError, match="beta above 0"):
        PreferenceLoss(beta=0.0)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (PreferenceLoss(), {}, "two answers per group, got 4; use selection=extremes"),
        (PreferenceLoss(), {"selection": PAIR, "advantages": ones}, "a better and a worse answer"),
        (
            PreferenceLoss(),
            {"selection": PAIR, "rollout": RolloutPlan(attempts_per_prompt=4, training_context="hindsight")},
            "training_context: expected original",
        ),
        (LikelihoodLoss(), {"selection": keep_ranked}, "use advantages=ones"),
    ],
)
def test_settings_that_a_loss_cannot_learn_from_are_refused_before_a_model_loads(loss, options, message):
    with pytest.raises(ConfigError, match=message):
        module_of(loss=loss, **options)


def test_a_step_of_no_pairs_fails(policy):
    loss = PreferenceLoss()
    for wrong in ([*pairs(1), pairs(1)[0]], [replace(e, advantage=1.0) for e in pairs(1)]):
        with pytest.raises(TrainingError, match="a worse and a better answer per group"):
            loss.prepare(wrong, scorer(policy, loss, reference=policy))


def test_negative_rewards_are_learned_from_unless_a_limit_is_set():
    attempts = [make_judged(r, id=f"group/{i}") for i, r in enumerate((-0.5, -0.2))]
    assert [member.reward for member in keep_ranked(make_task(), attempts, [], {}, 0)] == [-0.2]


def test_no_old_logprobs_where_there_is_no_ratio(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(Scorer, "logprobs", lambda *a, **k: calls.append(1))
    fit(module_of(loss=LikelihoodLoss(), updates_per_batch=2), tmp_path)
    assert calls == []


def test_dpo_trains_with_a_reference_and_lowers_its_loss(tmp_path):
    module = module_of(
        loss=PreferenceLoss(beta=0.5), selection=partial(keep_ranked, worst=1), updates_per_batch=1
    )
    kept = KeepSteps()
    fit(module, tmp_path, callbacks=[kept])
    first = kept.steps[-1].metrics["update/preference_loss"]
    assert first == pytest.approx(0.6931, abs=1e-3)  # policy and reference are the same: log 2
    assert module.updater.reference is not None
    longer = module_of(
        loss=PreferenceLoss(beta=0.5), selection=partial(keep_ranked, worst=1), updates_per_batch=1
    )
    fit(longer, tmp_path, max_epochs=4, callbacks=[kept])
    assert kept.steps[-1].metrics["update/preference_loss"] < first
    assert not torch.equal(weights(longer), initial())
