"""GSPO, CISPO, SAPO, DAPO, Dr.GRPO and the KL estimators against the papers' formulas, one token at a time in
float64; gradients by differences, with what the papers call stop-gradient held fixed. TRL is compared too, if
it is installed."""

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate

from herl.errors import ConfigError
from herl.hindsight.teacher import Teacher
from herl.update.loss.base import Tokens, token_weights
from herl.update.loss.policy import PolicyLoss
from herl.update.teaching import with_teacher
from tests.support.configuration import composed

LENGTHS = [3, 1, 4, 2]
ADVANTAGES = [1.3, 0.7, -0.9, -0.4]
PAPERS = {
    "gspo": PolicyLoss(
        ratio_level="sequence", clip_low=3e-4, clip_high=4e-4, dual_clip=None, aggregation="sequence_mean"
    ),
    "cispo": PolicyLoss(surrogate="cispo", clip_low=1.0, clip_high=4.0, dual_clip=None),
    "sapo": PolicyLoss(surrogate="sapo", dual_clip=None, aggregation="sequence_mean"),
    "dapo": PolicyLoss(clip_high=0.28, dual_clip=None),
    "dr_grpo": PolicyLoss(aggregation="constant", constant_length=64, dual_clip=None),
}
KLS = [("k2", "loss"), ("k3", "loss"), ("k1", "reward"), ("k2", "reward"), ("k3", "reward")]


def tokens(loss, seed=0, *, spread=1.0, by_token=False):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return -torch.rand(sum(LENGTHS), generator=generator, dtype=torch.float64) - 0.05

    row = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    old = draw()
    shares = token_weights(LENGTHS, loss.aggregation, loss.constant_length)
    return Tokens(
        logprobs=(old + spread * (draw() + 0.55)).requires_grad_(),
        entropy=-draw(),
        old_logprobs=old,
        sampler_logprobs=old,
        advantage=torch.tensor(ADVANTAGES, dtype=torch.float64)[row] + (draw() if by_token else 0.0),
        weight=torch.tensor(shares, dtype=torch.float64)[row],
        revision=torch.zeros_like(row).bool(),
        row=row,
        ref_logprobs=draw() if loss.needs_ref_logprobs else None,
    )


def kl_of(kind, policy, reference):
    d = reference - policy
    return {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[kind]


def by_paper(loss: PolicyLoss, t: Tokens, now: list[float], fixed: list[float]) -> float:
    """The step's loss; `fixed` are the log-probs inside of a stop-gradient."""
    answers = [[i for i in range(len(now)) if t.row[i] == answer] for answer in range(len(LENGTHS))]
    old = t.old_logprobs.tolist()
    total = 0.0
    for answer in answers:
        terms = []
        for place, i in enumerate(answer):
            advantage = float(t.advantage[i])
            if loss.kl_coef and loss.kl_in == "reward":
                later = [kl_of(loss.kl_estimator, old[j], float(t.ref_logprobs[j])) for j in answer[place:]]
                advantage -= loss.kl_coef * sum(later)
            rho, rho_fixed = math.exp(now[i] - old[i]), math.exp(fixed[i] - old[i])
            if loss.ratio_level == "sequence":
                rho_fixed = math.exp(sum(fixed[j] - old[j] for j in answer) / len(answer))
                rho = rho_fixed * math.exp(now[i] - fixed[i])  # GSPO-token, eq. 14
            low, high = 1 - loss.clip_low, 1 + loss.clip_high
            if loss.surrogate == "cispo":
                objective = min(max(rho_fixed, low), high) * advantage * now[i]
            elif loss.surrogate == "sapo":
                tau = loss.tau_positive if advantage > 0 else loss.tau_negative
                objective = advantage * (4 / tau) / (1 + math.exp(-tau * (rho - 1)))
            else:
                objective = min(rho * advantage, min(max(rho, low), high) * advantage)
            term = -objective
            if loss.kl_coef and loss.kl_in == "loss":
                term += loss.kl_coef * kl_of(loss.kl_estimator, now[i], float(t.ref_logprobs[i]))
            terms.append(term)
        if loss.aggregation == "sequence_mean":
            total += sum(terms) / len(terms) / len(LENGTHS)
        elif loss.aggregation == "token_mean":
            total += sum(terms) / sum(LENGTHS)
        else:
            total += sum(terms) / (len(LENGTHS) * loss.constant_length)
    return total


def compared(loss, t):
    value, stats = loss(t)
    (gradient,) = torch.autograd.grad(value, t.logprobs)
    now = t.logprobs.detach().tolist()
    assert float(value.detach()) == pytest.approx(by_paper(loss, t, now, now), rel=1e-10)
    step = 1e-6
    for i in range(len(now)):
        up, down = list(now), list(now)
        up[i] += step
        down[i] -= step
        slope = (by_paper(loss, t, up, now) - by_paper(loss, t, down, now)) / (2 * step)
        assert float(gradient[i]) == pytest.approx(slope, rel=1e-5, abs=1e-8)
    return gradient, stats


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("spread", [1e-4, 0.4, 3.0])
@pytest.mark.parametrize("name", PAPERS)
def test_value_and_gradient_are_those_of_the_paper(name, spread, by_token):
    """With one advantage per answer, and with one per token, as a teacher gives them."""
    loss = PAPERS[name]
    gradient, _ = compared(loss, tokens(loss, spread=spread, by_token=by_token))
    if spread < 1e-3:
        assert bool((gradient != 0).all()), "nothing is clipped near the old policy"


@pytest.mark.parametrize("name", ["gspo", "cispo", "sapo", "dapo"])
@pytest.mark.parametrize(("kind", "where"), KLS)
def test_value_and_gradient_with_a_kl_are_those_of_the_formula(name, kind, where):
    loss = replace(PAPERS[name], kl_coef=0.1, kl_estimator=kind, kl_in=where)
    _, stats = compared(loss, tokens(loss, spread=0.4))
    assert ("kl_penalty" in stats.means) == (where == "reward")


def test_gspo_of_one_advantage_per_answer_has_the_gradient_of_the_ratio_of_whole_answers():
    """The paper's equation 5, in which the ratio of an answer is differentiated through all its tokens."""
    loss = PAPERS["gspo"]
    for spread in (3e-4, 1e-3, 0.5):
        t = tokens(loss, spread=spread)
        (found,) = torch.autograd.grad(loss(t)[0], t.logprobs)
        total = torch.zeros((), dtype=torch.float64)
        for answer, advantage in enumerate(ADVANTAGES):
            own = t.row == answer
            s = (t.logprobs[own] - t.old_logprobs[own]).mean().exp()
            clipped = s.clamp(1 - loss.clip_low, 1 + loss.clip_high)
            total = total - torch.minimum(s * advantage, clipped * advantage) / len(ADVANTAGES)
        (wanted,) = torch.autograd.grad(total, t.logprobs)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PAPERS)
def test_choices_of_the_loss_are_the_papers(name):
    made = instantiate(composed("fit", f"loss={name}").loss)
    assert made == PAPERS[name]


@pytest.mark.parametrize(("name", "where"), [("gspo", "loss"), ("cispo", "reward"), ("sapo", "reward")])
def test_a_teachers_advantages_by_token_go_with_each(name, where):
    kind = "k1" if where == "reward" else "k2"
    loss = replace(PAPERS[name], kl_coef=0.05, kl_estimator=kind, kl_in=where)
    t = tokens(loss, spread=0.4)
    told = t.old_logprobs + torch.linspace(-1, 1, len(t.row), dtype=torch.float64)
    taught = t.row != 1
    advantage, _ = with_teacher(t.advantage, told, t.old_logprobs, taught, t.row, Teacher(coef=0.5, clip=0.6))
    compared(loss, replace(t, advantage=advantage))


def test_one_answers_penalty_does_not_depend_on_the_others_in_its_row():
    loss = PolicyLoss(kl_coef=0.1, kl_estimator="k1", kl_in="reward", surrogate="sapo", dual_clip=None)
    t = tokens(loss)
    (whole,) = torch.autograd.grad(loss(t)[0], t.logprobs)
    own = t.row == 2
    alone = replace(
        t,
        **{
            name: getattr(t, name)[own]
            for name in Tokens.__slots__
            if isinstance(getattr(t, name), torch.Tensor)
        },
    )
    alone = replace(alone, logprobs=alone.logprobs.detach().requires_grad_(), row=torch.zeros(4).long())
    (part,) = torch.autograd.grad(loss(alone)[0], alone.logprobs)
    assert torch.equal(part, whole[own])


def test_k1_in_the_reward_and_k2_in_the_loss_have_the_gradient_of_the_kl_on_policy():
    """Over all tokens of one softmax, weighted by their probability: what sampling tends to."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    policy = logits.log_softmax(0)
    (wanted,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)
    fixed = policy.detach()
    for kind, where in (("k1", "reward"), ("k2", "loss")):
        logprobs = logits.log_softmax(0)
        t = Tokens(
            logprobs=logprobs, entropy=torch.zeros_like(fixed), old_logprobs=fixed, sampler_logprobs=fixed,
            advantage=torch.zeros_like(fixed), weight=fixed.exp(), revision=torch.zeros(3).bool(),
            row=torch.arange(3), ref_logprobs=reference,
        )  # fmt: skip
        loss = PolicyLoss(kl_coef=1.0, kl_estimator=kind, kl_in=where, dual_clip=None)
        (found,) = torch.autograd.grad(loss(t)[0], logits)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kl_estimator": "k1"}, "loss.kl_estimator: expected k2 or k3 with kl_in=loss, got k1"),
        ({"surrogate": "cispo"}, "loss.dual_clip: expected null with surrogate=cispo"),
        ({"surrogate": "sapo", "dual_clip": None, "tau_negative": 0.0}, "loss.tau_negative: expected"),
    ],
)
def test_combinations_that_cannot_work_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        PolicyLoss(**options)


TRL = {
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "cispo": {"loss_type": "cispo"},
    "sapo": {"loss_type": "sapo"},
    "dapo": {"loss_type": "dapo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
}


def by_trl(trainer_class, name, loss, t):
    """TRL's loss of the same tokens, padded to one row per answer."""
    longest = max(LENGTHS)
    places = [(int(t.row[i]), i - sum(LENGTHS[: int(t.row[i])])) for i in range(sum(LENGTHS))]
    rows, columns = (torch.tensor(one) for one in zip(*places, strict=True))

    def padded(values):
        return torch.zeros(len(LENGTHS), longest, dtype=values.dtype).index_put((rows, columns), values)

    mask = padded(torch.ones_like(t.row))
    options = {"beta": loss.kl_coef, "off_policy_mask_threshold": None, "top_entropy_quantile": 1.0}
    fake = SimpleNamespace(
        **options, **{"importance_sampling_level": "token"} | TRL[name],
        epsilon_low=loss.clip_low,
        epsilon_high=1 + loss.clip_high if name == "cispo" else loss.clip_high,  # TRL's is the weight itself
        args=SimpleNamespace(
            delta=None, use_bias_correction_kl=False, steps_per_generation=1,
            sapo_temperature_pos=loss.tau_positive, sapo_temperature_neg=loss.tau_negative,
        ),
        max_completion_length=loss.constant_length, current_gradient_accumulation_steps=1, use_vllm=False,
        model=SimpleNamespace(training=True), aux_loss_enabled=False, _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda value: value, reduce=lambda v, reduction: v),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *a, **k: (padded(t.logprobs), padded(t.entropy), None),
    )  # fmt: skip
    ids = torch.zeros_like(mask)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask,
        "advantages": padded(t.advantage), "old_per_token_logps": padded(t.old_logprobs),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    if t.ref_logprobs is not None:
        inputs["ref_per_token_logps"] = padded(t.ref_logprobs)
    return trainer_class._compute_loss(fake, None, inputs)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
@pytest.mark.parametrize("name", TRL)
def test_value_and_gradient_are_those_of_trl(name, kl_coef):
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", exc_type=ImportError)
    for spread in (1e-4, 0.4, 3.0):
        # TRL keeps SAPO's temperature in float32, so this one is exact in it
        loss = replace(PAPERS[name], kl_coef=kl_coef, tau_negative=1.0625)
        t = tokens(loss, spread=spread)
        wanted = by_trl(trainer.GRPOTrainer, name, loss, t)
        found, _ = loss(t)
        assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
        one, other = (torch.autograd.grad(value, t.logprobs)[0] for value in (found, wanted))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
