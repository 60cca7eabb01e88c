"""The loss against a second, naive implementation in float64, one token at a time, and closed forms."""

import itertools
import math

import pytest
import torch

from herl import Sampling
from herl.errors import ConfigError
from herl.update.loss.base import Tokens, token_weights
from herl.update.loss.dpo import PreferenceLoss
from herl.update.loss.policy import Mismatch, PolicyLoss, k3, mismatch_weight
from herl.update.loss.sft import LikelihoodLoss
from tests.support.naive import drawn_from

LENGTHS = [3, 1, 4, 2]
REVISION_ROWS = [False, True, False, True]
ADVANTAGES = [1.3, 0.7, -0.9, -0.4]


def tokens(seed=0, *, with_reference=False, spread=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return -torch.rand(sum(LENGTHS), generator=generator, dtype=torch.float64) * spread - 0.05

    row = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    return Tokens(
        logprobs=draw().requires_grad_(),
        entropy=-draw(),
        old_logprobs=draw(),
        sampler_logprobs=draw(),
        advantage=torch.tensor(ADVANTAGES, dtype=torch.float64)[row],
        weight=torch.tensor(token_weights(LENGTHS, "token_mean"), dtype=torch.float64)[row],
        revision=torch.tensor(REVISION_ROWS)[row],
        row=row,
        ref_logprobs=draw() if with_reference else None,
    )


def naive_loss(loss: PolicyLoss, t: Tokens, logprobs: list[float]) -> float:
    total = 0.0
    for i, logprob in enumerate(logprobs):
        old, sampled, advantage = (
            float(t.old_logprobs[i]),
            float(t.sampler_logprobs[i]),
            float(t.advantage[i]),
        )
        is_revision = bool(t.revision[i])
        behavior = old
        if is_revision and loss.revision_ratio == "policy_prob":
            behavior = 0.0
        if is_revision and loss.revision_ratio == "cross_context":
            behavior = sampled
        rho = math.exp(max(-20.0, min(20.0, logprob - behavior)))
        if is_revision and loss.revision_ratio == "cross_context":
            rho = min(rho, loss.ratio_cap)
        if is_revision and loss.revision_shaping == "shaped":
            term = -advantage * (rho / (rho + loss.gamma) if loss.gamma > 0 else rho)
        else:
            clipped = min(max(rho, 1 - loss.clip_low), 1 + loss.clip_high)
            term = max(-advantage * rho, -advantage * clipped)
            if advantage < 0 and loss.dual_clip is not None:
                term = min(term, -loss.dual_clip * advantage)
        if not is_revision and loss.mismatch.level != "none":
            same = [j for j in range(len(logprobs)) if t.row[j] == t.row[i]]
            over = same if loss.mismatch.level == "sequence" else [i]
            weight = math.exp(sum(float(t.old_logprobs[j] - t.sampler_logprobs[j]) for j in over))
            if weight > loss.mismatch.cap:
                weight = loss.mismatch.cap if loss.mismatch.mode == "truncate" else 0.0
            term *= weight
        term -= loss.entropy_coef * float(t.entropy[i])
        if t.ref_logprobs is not None:
            d = float(t.ref_logprobs[i]) - logprob
            term += loss.kl_coef * (math.exp(d) - d - 1)
        total += float(t.weight[i]) * term
    return total


OPTIONS = [
    {"revision_ratio": ratio, "revision_shaping": shaping, "gamma": gamma, "dual_clip": dual}
    for ratio, (shaping, gamma), dual in itertools.product(
        ("same_context", "policy_prob", "cross_context"),
        (("clip", 1.0), ("shaped", 1.0), ("shaped", 0.1), ("shaped", 0.0)),
        (3.0, None),
    )
] + [
    {"entropy_coef": 0.01},
    {"kl_coef": 0.1},
    {"clip_low": 0.1, "clip_high": 0.3},
    *(
        {"mismatch": Mismatch(level=level, mode=mode, cap=1.1)}
        for level in ("token", "sequence")
        for mode in ("truncate", "mask")
    ),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_value_and_gradient_equal_the_naive_implementation(options):
    loss = PolicyLoss(**options)
    for seed, spread in itertools.product(range(3), (0.3, 4.0)):
        t = tokens(seed, with_reference=loss.kl_coef > 0, spread=spread)
        value, _ = loss(t)
        values = t.logprobs.detach().tolist()
        assert float(value.detach()) == pytest.approx(naive_loss(loss, t, values), rel=1e-9, abs=1e-12)
        (gradient,) = torch.autograd.grad(value, t.logprobs)
        step = 1e-6
        for i in range(len(values)):
            up, down = list(values), list(values)
            up[i] += step
            down[i] -= step
            slope = (naive_loss(loss, t, up) - naive_loss(loss, t, down)) / (2 * step)
            assert float(gradient[i]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def one_token(loss, *, advantage, logprob=-1.0, old=-1.0, revision=False):
    t = Tokens(
        logprobs=torch.tensor([logprob], dtype=torch.float64, requires_grad=True),
        entropy=torch.zeros(1, dtype=torch.float64),
        old_logprobs=torch.tensor([old], dtype=torch.float64),
        sampler_logprobs=torch.tensor([old], dtype=torch.float64),
        advantage=torch.tensor([advantage], dtype=torch.float64),
        weight=torch.ones(1, dtype=torch.float64),
        revision=torch.tensor([revision]),
        row=torch.tensor([0]),
    )
    value, stats = loss(t)
    (gradient,) = torch.autograd.grad(value, t.logprobs)
    return float(value.detach()), float(gradient), stats


def test_at_ratio_one_the_gradient_is_minus_the_advantage():
    value, gradient, _ = one_token(PolicyLoss(), advantage=0.8)
    assert (value, gradient) == (pytest.approx(-0.8), pytest.approx(-0.8))


@pytest.mark.parametrize(("gamma", "share"), [(1.0, 0.25), (0.1, 0.1 / 1.21), (0.0, 1.0)])
def test_shaping_at_ratio_one_scales_the_gradient_by_gamma_over_one_plus_gamma_squared(gamma, share):
    loss = PolicyLoss(revision_shaping="shaped", gamma=gamma)
    _, gradient, _ = one_token(loss, advantage=2.0, revision=True)
    assert gradient == pytest.approx(-2.0 * share)


def test_clip_stops_the_gradient_of_a_good_answer_that_became_much_likelier():
    value, gradient, stats = one_token(PolicyLoss(), advantage=1.0, logprob=-1.0, old=-1.5)
    assert (value, gradient) == (pytest.approx(-1.2), 0.0)
    assert float(stats.means["clip_fraction_high"][0]) == 1.0


def test_dual_clip_bounds_the_loss_of_a_bad_answer_that_became_much_likelier():
    value, gradient, _ = one_token(PolicyLoss(), advantage=-1.0, logprob=-0.1, old=-5.0)
    assert (value, gradient) == (pytest.approx(3.0), 0.0)


def test_ratio_exponent_is_clamped():
    loss = PolicyLoss(revision_shaping="shaped", gamma=0.0)
    value, _, _ = one_token(loss, advantage=1.0, logprob=-1.0, old=-100.0, revision=True)
    assert value == pytest.approx(-math.exp(20))


def test_kl_is_zero_on_the_reference_and_positive_elsewhere():
    logprobs = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64)
    reference = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
    expected = [0.0, math.exp(-1) + 1 - 1, math.exp(0.5) - 0.5 - 1]
    assert k3(logprobs, reference).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", [0.1, 0.1, 0.1, 0.1]),
        ("sequence_mean", [1 / 12, 1 / 4, 1 / 16, 1 / 8]),
        ("constant", [1 / 40] * 4),
    ],
)
def test_token_weights(aggregation, expected):
    assert token_weights(LENGTHS, aggregation, constant_length=10) == pytest.approx(expected)


def test_mismatch_weights_have_no_gradient_and_respect_the_cap():
    trainer = torch.tensor([-1.0, -1.0, -3.0], requires_grad=True)
    sampler = torch.tensor([-1.5, -0.9, -1.0])
    row = torch.tensor([0, 0, 1])
    token, cut = mismatch_weight(trainer, sampler, row, level="token", mode="truncate", cap=1.2)
    assert token.tolist() == pytest.approx([1.2, math.exp(-0.1), math.exp(-2)])
    assert cut.tolist() == [True, False, False]
    assert not token.requires_grad
    sequence, cut = mismatch_weight(trainer, sampler, row, level="sequence", mode="mask", cap=1.2)
    assert sequence.tolist() == pytest.approx([0.0, 0.0, math.exp(-2)])
    assert cut.tolist() == [True, True, False]


def test_statistics_are_sums_and_counts():
    _, stats = PolicyLoss()(tokens())
    assert int(stats.means["entropy"][1]) == sum(LENGTHS)
    assert int(stats.means["revision_ratio"][1]) == 3


def test_mismatch_statistics_compare_the_sampler_with_the_trainer_before_the_update():
    t = tokens(spread=0.3)
    own = ~t.revision
    _, stats = PolicyLoss(mismatch=Mismatch(level="token", cap=1.1))(t)
    difference = (t.old_logprobs - t.sampler_logprobs)[own]
    total, count = stats.means["mismatch_kl"]
    assert float(total / count) == pytest.approx(float((difference.exp() - difference - 1).mean()))
    assert float(stats.maxima["mismatch_max"].max()) == pytest.approx(float(difference.abs().max()))
    total, count = stats.means["mismatch_clipped"]
    assert 0 < float(total / count) == pytest.approx(float((difference.exp() > 1.1).float().mean()))


def test_a_dual_clip_within_the_clip_range_is_refused():
    with pytest.raises(ConfigError, match="dual_clip: expected more than"):
        PolicyLoss(dual_clip=1.1)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_a_step_without_answers_has_no_weights(aggregation):
    assert token_weights([], aggregation) == []


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_a_clamped_kl_of_a_token_that_became_impossible_has_no_gradient(kind):
    logprobs = torch.tensor([-120.0, -1.0], requires_grad=True)
    given = Tokens(
        logprobs=logprobs, entropy=torch.zeros(2), old_logprobs=logprobs.detach(),
        ref_logprobs=torch.tensor([-0.1, -1.5]), sampler_logprobs=logprobs.detach(), advantage=torch.zeros(2),
        weight=torch.ones(2), revision=torch.zeros(2).bool(), row=torch.tensor([0, 0]),
    )  # fmt: skip
    PolicyLoss(kl_coef=1.0, kl_clamp=10.0, kl_estimator=kind)(given)[0].backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0] == 0.0
    assert logprobs.grad[1] > 0.0


def test_a_clamped_kl_is_at_most_the_clamp_and_has_no_gradient_beyond_it():
    """By hand: log-ratios of 1, 3 and -4 give e - 2, e^3 - 4 = 16.1 and e^-4 + 3."""
    logprobs = torch.tensor([-2.0, -5.0, -1.0], dtype=torch.float64, requires_grad=True)
    reference = logprobs.detach() + torch.tensor([1.0, 3.0, -4.0], dtype=torch.float64)
    zeros = torch.zeros(3, dtype=torch.float64)
    given = Tokens(
        logprobs=logprobs, entropy=zeros, old_logprobs=logprobs.detach(), ref_logprobs=reference,
        sampler_logprobs=logprobs.detach(), advantage=zeros, weight=torch.full_like(zeros, 1 / 3),
        revision=zeros.bool(), row=torch.tensor([0, 0, 1]),
    )  # fmt: skip
    loss, stats = PolicyLoss(kl_coef=0.3, kl_clamp=10.0)(given)
    loss.backward()
    terms = [math.e - 2, 10.0, math.exp(-4) + 3]
    assert float(loss.detach()) == pytest.approx(0.3 * sum(terms) / 3, rel=1e-12)
    # d k3 / d logprob = 1 - exp(d)
    expected = [0.1 * (1 - math.e), 0.0, 0.1 * (1 - math.exp(-4))]
    assert logprobs.grad.tolist() == pytest.approx(expected, rel=1e-12)
    total, _ = stats.means["kl_to_reference"]
    assert float(total) == pytest.approx(terms[0] + math.exp(3) - 4 + terms[2], rel=1e-12)
    with pytest.raises(ConfigError, match=r"loss.kl_clamp: expected a number above 0, or null, got 0"):
        PolicyLoss(kl_clamp=0.0)


@pytest.mark.parametrize("name", ["clip_low", "clip_high", "kl_coef"])
def test_a_negative_coefficient_is_refused(name):
    with pytest.raises(ConfigError, match=f"loss.{name}: expected at least 0, got -0.1"):
        PolicyLoss(**{name: -0.1})


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8, repetition_penalty=1.5, presence_penalty=0.4),
        Sampling(top_p=0.7),
        Sampling(top_k=4, min_p=0.05),
    ],
)
def test_weights_make_the_gradient_that_of_the_policy_whatever_the_distribution_that_was_drawn_from(sampling):
    """Every answer of one token, weighed by how often it is drawn: what is kept counts as the policy has it."""
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(12, generator=generator, dtype=torch.float64)).requires_grad_()
    reward = torch.randn(12, generator=generator, dtype=torch.float64)
    policy = (logits / sampling.temperature).log_softmax(-1)
    behavior = drawn_from(logits.detach(), sampling, (1, 2, 3), (3,))
    kept = behavior > -torch.inf
    count = int(kept.sum())
    drawn = Tokens(
        logprobs=policy[kept],
        entropy=torch.zeros(count),
        old_logprobs=policy[kept].detach(),
        sampler_logprobs=behavior[kept],
        advantage=reward[kept],
        weight=behavior[kept].exp(),
        revision=torch.zeros(count, dtype=torch.bool),
        row=torch.arange(count),
    )
    expected = torch.autograd.grad(-(policy.exp() * reward)[kept].sum(), logits, retain_graph=True)[0]
    right, wrong = (
        torch.autograd.grad(PolicyLoss(mismatch=mismatch)(drawn)[0], logits, retain_graph=True)[0]
        for mismatch in (Mismatch(level="token", cap=1e9), Mismatch())
    )
    torch.testing.assert_close(right, expected)
    assert (wrong - expected).abs().max() > 0.02 * expected.abs().max()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: PolicyLoss(ratio_cap=-1.0), "loss.ratio_cap: expected a number above 0, got -1.0"),
        (lambda: PolicyLoss(ratio_cap=float("nan")), "loss.ratio_cap: expected a number above 0, got nan"),
        (lambda: PolicyLoss(constant_length=0), "loss.constant_length: expected at least 1, got 0"),
        (lambda: LikelihoodLoss(constant_length=0), "loss.constant_length: expected at least 1, got 0"),
        (
            lambda: PolicyLoss(kl_clamp=float("nan")),
            "loss.kl_clamp: expected a number above 0, or null, got nan",
        ),
        (lambda: PolicyLoss(dual_clip=float("nan")), "loss.dual_clip: expected more than 1 . clip_high"),
        (lambda: Mismatch(cap=0.0), "loss.mismatch.cap: expected a number above 0, got 0"),
        (lambda: PreferenceLoss(beta=float("nan")), "loss: expected beta above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(made, message):
    with pytest.raises(ConfigError, match=message):
        made()
