"""The teacher's term, against a naive version: one padded answer at a time, tokens in a plain loop."""

import copy
from dataclasses import replace

import pytest
import torch

import herl.update.scorer
import herl.update.teaching
from herl import ConfigError
from herl.hindsight.revision import RevisionBuilder
from herl.hindsight.teacher import Teacher
from herl.judge.rule import RuleJudge
from herl.models.lora import Lora
from herl.models.pretrained import PretrainedModel
from herl.update.batch import micro_batches, split_by_group
from herl.update.loss.base import Tokens, token_weights
from herl.update.loss.dpo import PreferenceLoss
from herl.update.loss.policy import PolicyLoss
from herl.update.loss.sft import LikelihoodLoss
from herl.update.scorer import Scorer
from herl.update.teaching import taught_logprobs, with_teacher
from tests.support.experiences import several
from tests.support.naive import padded_logprobs
from tests.support.training import KeepSteps, fit, initial, module_of, weights

TEACHER = Teacher(coef=0.5, clip=0.3)


def scorer(policy, *, loss=None, packing="shared", max_tokens=60, teacher=TEACHER):
    return Scorer(
        policy=policy,
        reference=None,
        loss=loss or PolicyLoss(),
        temperature=1.0,
        max_tokens=max_tokens,
        packing=packing,
        device=torch.device("cpu"),
        teacher=teacher,
    )


def taught_experiences():
    """Attempts are taught, one in two by a prompt that others share; revisions are not. One attempt thinks."""
    found = several()
    for place, e in enumerate(found):
        if e.origin == "policy":
            found[place] = replace(e, teacher_ids=(5, 6, 7, 8) if place % 2 else (9, 10 + place))
    length = len(found[4].rollout.token_ids)
    found[4] = replace(found[4], rollout=replace(found[4].rollout, thinking_tokens=min(3, length)))
    return found


def naive_logprobs(model, e, context):
    return padded_logprobs(model, [replace(e, context_ids=context)])[0].detach()


def naive_advantages(model, e, teacher=TEACHER):
    """The advantage of each token, in a plain loop."""
    advantages = [e.advantage] * len(e.rollout.token_ids)
    if e.teacher_ids:
        told = naive_logprobs(model, e, e.teacher_ids).tolist()
        old = naive_logprobs(model, e, e.context_ids).tolist()
        places = range(e.rollout.thinking_tokens, len(advantages))
        terms = {p: teacher.coef * max(-teacher.clip, min(teacher.clip, told[p] - old[p])) for p in places}
        mean = sum(terms.values()) / len(terms) if teacher.center and terms else 0.0
        for place, term in terms.items():
            advantages[place] += term - mean
    return advantages


def naive_loss(model, before, experiences, loss, teacher=TEACHER):
    """The loss of an optimizer step; `before` is the policy before the batch's first."""
    share = token_weights([len(e.rollout.token_ids) for e in experiences], loss.aggregation)
    total = torch.tensor(0.0)
    for e, weight in zip(experiences, share, strict=True):
        logprobs, entropy = padded_logprobs(model, [e])
        count = len(logprobs)
        tokens = Tokens(
            logprobs=logprobs,
            entropy=entropy,
            old_logprobs=naive_logprobs(before, e, e.context_ids),
            sampler_logprobs=torch.tensor(e.rollout.logprobs),
            advantage=torch.tensor(naive_advantages(before, e, teacher)),
            weight=torch.full([count], weight),
            revision=torch.full([count], e.origin != "policy"),
            row=torch.zeros(count, dtype=torch.long),
        )
        total = total + loss(tokens)[0]
    return total


def shaken(model, size=0.02):
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * size)
    return other


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def steps(made, experiences, told, old=None):
    """The loss of an optimizer step, with its gradient; also the sums of its statistics."""
    total, sums = 0.0, {}
    hints = [told.get(e.rollout.id) for e in experiences]
    for batch in made.micro_batches(experiences, old, hints):
        loss, stats = made.compute_loss(batch)
        loss.backward()
        total += float(loss.detach())
        for name, (value, count) in stats.means.items():
            before = sums.get(name, (0.0, 0))
            sums[name] = before[0] + float(value), before[1] + int(count)
    return total, sums


@pytest.mark.parametrize(
    ("packing", "later", "center"),
    [("shared", False, False), ("packed", False, True), ("single", True, False), ("shared", True, True)],
)
def test_loss_and_gradient_are_those_of_the_naive_version(policy, packing, later, center):
    """In a later step of the batch, the policy has moved, but the teacher and the old policy have not."""
    experiences, loss = taught_experiences(), PolicyLoss(clip_low=0.1, clip_high=0.1)
    now = shaken(policy) if later else policy
    teacher = replace(TEACHER, center=center)
    expected = naive_loss(now, policy, experiences, loss, teacher)
    expected.backward()
    wanted = gradient(now).clone()
    now.zero_grad()
    before, made = (
        scorer(one, packing=packing, loss=loss, teacher=teacher, max_tokens=90) for one in (policy, now)
    )
    told = taught_logprobs(before, experiences)
    found, _ = steps(made, experiences, told, before.logprobs(experiences) if later else None)
    assert found == pytest.approx(float(expected.detach()), rel=1e-4)
    assert float((gradient(now) - wanted).norm() / wanted.norm()) < 1e-4


def test_adapters_belong_to_the_teacher():
    policy = shaken(PretrainedModel(path="tiny", lora=Lora(rank=4)).load().eval(), 0.1)
    experiences = taught_experiences()[1:3]
    told = taught_logprobs(scorer(policy), experiences)
    for e in experiences:
        expected = naive_logprobs(policy, e, e.teacher_ids)
        torch.testing.assert_close(told[e.rollout.id], expected, rtol=1e-4, atol=1e-5)


def test_the_curves_count_taught_tokens_only(policy):
    experiences = taught_experiences()
    made = scorer(policy)
    _, sums = steps(made, experiences, taught_logprobs(made, experiences))
    terms, signs, tokens = [], [], 0
    for e in experiences:
        tokens += len(e.rollout.token_ids)
        if e.teacher_ids:
            for one in naive_advantages(policy, e)[e.rollout.thinking_tokens :]:
                terms.append(one - e.advantage)
                signs.append((one - e.advantage) * e.advantage > 0)
    means = {name: value / count for name, (value, count) in sums.items()}
    count, limit = len(terms), TEACHER.coef * TEACHER.clip
    assert means["teacher_share"] == pytest.approx(count / tokens)
    assert means["teacher_mean"] == pytest.approx(sum(terms) / count, abs=1e-5)
    assert means["teacher_size"] == pytest.approx(sum(map(abs, terms)) / count, abs=1e-5)
    assert means["teacher_agreement"] == pytest.approx(sum(signs) / count)
    clipped = sum(abs(abs(term) - limit) < 1e-6 for term in terms)
    assert means["teacher_clipped"] == pytest.approx(clipped / count)
    assert 0 < clipped < count, "this test needs both"


def test_a_token_as_likely_for_the_teacher_and_tokens_not_taught_keep_their_advantage():
    old = torch.tensor([0.5, 0.5, 0.5]).log()
    told = torch.tensor([0.5, 0.9, 0.9]).log()
    taught = torch.tensor([True, True, False])
    rewarded, row = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0, 0, 1])
    advantage, stats = with_teacher(rewarded, told, old, taught, row, Teacher(coef=1.0))
    assert advantage.tolist() == pytest.approx([1.0, 0.5878, -1.0], abs=1e-4)
    assert not advantage.requires_grad
    assert int(stats.means["teacher_agreement"][1]) == 1, "an advantage of 0 has no sign"


def test_without_a_teacher_micro_batches_are_as_before(policy):
    experiences = several()
    for batch in micro_batches(experiences, max_tokens=60, aggregation="token_mean"):
        assert batch.teacher_logprobs is None
        assert batch.taught is None
        _, stats = scorer(policy).compute_loss(batch)
        assert not any(name.startswith("teacher") for name in stats.means)


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_share_the_teachers_pass_and_its_results(policy, monkeypatch, world_size):
    experiences, made = taught_experiences(), scorer(policy, max_tokens=10**6)
    alone = taught_logprobs(made, experiences)
    loss, _ = steps(made, experiences, alone)
    monkeypatch.setattr(herl.update.scorer, "world_size", lambda: world_size)
    shares = []
    for rank in range(world_size):
        monkeypatch.setattr(herl.update.scorer, "rank", lambda rank=rank: rank)
        shares.append(taught_logprobs(made, experiences))
    monkeypatch.setattr(herl.update.teaching, "gather", lambda own: shares)
    assert sum(map(len, shares)) == len(alone), "each is computed once"
    total = 0.0
    for rank in range(world_size):
        monkeypatch.setattr(herl.update.scorer, "rank", lambda rank=rank: rank)
        told = taught_logprobs(made, experiences)
        assert told.keys() == alone.keys()
        for name, logprobs in told.items():
            torch.testing.assert_close(logprobs, alone[name], rtol=1e-4, atol=1e-5)
        total += steps(made, experiences, told)[0]
    assert total == pytest.approx(loss, rel=1e-4)


def test_a_whole_batch_of_several_steps_is_that_of_the_naive_version(tmp_path):
    keep, teacher = KeepSteps(), Teacher(coef=0.5, clip=0.5, tell="missed")
    module = module_of(teacher=teacher, hindsight=RevisionBuilder(), updates_per_batch=2)
    fit(module, tmp_path, callbacks=[keep])
    [step] = keep.steps
    experiences = step.collection.experiences
    for e in experiences:
        assert bool(e.teacher_ids) == (e.origin == "policy" and e.reward < 1.0)
    assert len({e.teacher_ids for e in experiences}) > 3, "attempts miss different criteria"
    before = PretrainedModel(path="tiny").load()
    now, loss = copy.deepcopy(before), PolicyLoss()
    optimizer = torch.optim.SGD(now.parameters(), lr=0.1)
    parts = split_by_group(experiences, 2)
    assert len(parts) == 2
    for part in parts:
        optimizer.zero_grad()
        naive_loss(now, before, part, loss, teacher).backward()
        torch.nn.utils.clip_grad_norm_(now.parameters(), 1.0)
        optimizer.step()
    moved = torch.cat([p.detach().flatten() for p in now.parameters()]) - initial()
    assert float((weights(module) - initial() - moved).norm() / moved.norm()) < 1e-4
    assert step.metrics["update/teacher_share"] > 0.5


@pytest.mark.parametrize("loss", [LikelihoodLoss(), PreferenceLoss()])
def test_losses_without_a_ratio_have_no_teacher(loss):
    with pytest.raises(ConfigError, match="teacher: expected a policy loss.*use teacher=none, or loss=clip"):
        module_of(loss=loss, teacher=Teacher(coef=0.1))


def test_missed_criteria_need_a_judge_with_verdicts():
    class Holistic(RuleJudge):
        holistic = True

    with pytest.raises(
        ConfigError, match="judge: teacher needs verdicts on each criterion.*teacher.tell=rubric"
    ):
        module_of(judge=Holistic(), teacher=Teacher(coef=0.1, tell="missed"))
    module_of(judge=Holistic(), teacher=Teacher(coef=0.1))
