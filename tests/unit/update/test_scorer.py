"""The choice of tokens by their entropy: against naive versions in float64, and over whole steps."""

import math
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from herl.errors import ConfigError
from herl.update.loss.base import Tokens, token_weights
from herl.update.loss.policy import PolicyLoss
from herl.update.scorer import Scorer, _one_ahead, floor_of
from tests.support.experiences import PACKINGS, several
from tests.support.naive import padded_logprobs
from tests.support.training import KeepSteps, fit, module_of, weights

SHARES = (0.2, 0.5, 0.9)


def scorer(policy, loss, *, packing="shared", max_tokens=60):
    return Scorer(
        policy=policy, reference=None, loss=loss, temperature=1.0, max_tokens=max_tokens, packing=packing,
        device=torch.device("cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("share", SHARES)
def test_the_floor_keeps_what_the_quantile_keeps(share):
    """The rule of TRL: entropies at or above the quantile 1 - share of all, ties included."""
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 7, 50, 51):
        entropies = torch.rand(count, generator=generator, dtype=torch.float64).mul(20).round() / 10  # ties
        expected = entropies >= torch.quantile(entropies, 1.0 - share)
        assert torch.equal(entropies >= floor_of(entropies.tolist(), share), expected)
    assert floor_of([], share) == -math.inf
    assert floor_of([1.0, math.nan], share) == -math.inf, "a step that is no number must not be hidden"


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("options", [{}, {"entropy_coef": 0.1, "kl_coef": 0.3, "kl_estimator": "k2"}])
def test_value_and_gradient_equal_a_naive_version_in_float64(share, options):
    """One padded row per answer; a mask multiplies the policy's term before KL and bonus are added."""
    generator, lengths = torch.Generator().manual_seed(1), [5, 2, 7, 1]
    width, count = max(lengths), sum(lengths)
    valid = torch.arange(width) < torch.tensor(lengths)[:, None]

    def padded():
        return -torch.rand(len(lengths), width, generator=generator, dtype=torch.float64) - 0.05

    logprobs, old, reference, entropy = padded().requires_grad_(), padded(), padded(), -padded()
    advantage = torch.tensor([[1.2], [-0.7], [0.4], [-1.0]], dtype=torch.float64)
    mask = valid & (entropy >= torch.quantile(entropy[valid], 1.0 - share))
    rho = (logprobs - old).exp()
    clipped = torch.maximum(-advantage * rho, -advantage * rho.clamp(0.8, 1.2)) * mask
    kl = 0.3 * (reference - logprobs) ** 2 / 2 - 0.1 * entropy if options else 0.0
    expected = ((clipped + kl) * valid).sum() / count
    [gradient] = torch.autograd.grad(expected, logprobs, retain_graph=True)

    loss = PolicyLoss(dual_clip=None, top_entropy_share=share, **options)
    row = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    found, stats = loss(
        Tokens(
            logprobs=logprobs[valid],
            entropy=entropy[valid],
            old_logprobs=old[valid],
            sampler_logprobs=old[valid],
            advantage=advantage[:, 0][row],
            weight=torch.tensor(token_weights(lengths, "token_mean"), dtype=torch.float64)[row],
            revision=torch.zeros(count, dtype=torch.bool),
            row=row,
            ref_logprobs=reference[valid] if options else None,
            entropy_floor=floor_of(entropy[valid].tolist(), share),
        )
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logprobs)[0], gradient)
    total, tokens = stats.means["top_entropy"]
    assert float(total / tokens) == pytest.approx(float(mask.sum()) / count)
    assert 0 < float(mask.sum()) < count or share == 0.9


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("max_tokens", [1, 60, 10**6])
def test_the_tokens_chosen_are_those_of_the_whole_step(policy, packing, max_tokens):
    experiences, loss = several(), PolicyLoss(top_entropy_share=0.3)
    entropies = padded_logprobs(policy, experiences)[1].detach()
    expected = entropies >= torch.quantile(entropies, 0.7)
    made = scorer(policy, loss, packing=packing, max_tokens=max_tokens).for_step(experiences)
    assert torch.equal(entropies >= made.entropy_floor, expected)
    kept = total = 0
    for batch in made.micro_batches(experiences):
        kept_here, count = made.compute_loss(batch)[1].means["top_entropy"]
        kept, total = kept + int(kept_here), total + int(count)
    assert (kept, total) == (int(expected.sum()), len(entropies))


def test_all_tokens_are_chosen_without_a_further_pass(policy, monkeypatch):
    made = scorer(policy, PolicyLoss())
    monkeypatch.setattr("herl.update.scorer.answer_logprobs", None)
    assert made.for_step(several()) is made


def test_a_run_with_all_tokens_is_the_run_without_the_choice_and_others_differ(tmp_path):
    found = {}
    for share in (None, 1.0, 0.3):
        loss = PolicyLoss() if share is None else PolicyLoss(top_entropy_share=share)
        module, steps = module_of(loss=loss), KeepSteps()
        fit(module, tmp_path, callbacks=[steps])
        found[share] = weights(module)
        curve = [step.metrics.get("update/top_entropy") for step in steps.steps]
        assert curve == [None] if share != 0.3 else 0.25 < curve[0] < 0.4
    assert torch.equal(found[None], found[1.0])
    assert not torch.equal(found[0.3], found[1.0])


def test_the_gradient_does_not_depend_on_micro_batches(tmp_path):
    moved = []
    for tokens in (1, 10**6):
        module = module_of(loss=PolicyLoss(top_entropy_share=0.4), micro_batch_tokens=tokens)
        before = fit(module, tmp_path) and weights(module)
        moved.append(before)
    assert float((moved[0] - moved[1]).norm() / moved[0].norm()) < 1e-6


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_is_above_0_and_at_most_1(share):
    with pytest.raises(ConfigError, match=r"loss.top_entropy_share: expected a share in \(0, 1\]"):
        replace(PolicyLoss(), top_entropy_share=share)


def test_rows_are_prepared_ahead_in_order_on_the_callers_stream(monkeypatch):
    """Current streams belong to threads, so the one that prepares rows must take over its caller's."""
    current = threading.local()

    @contextmanager
    def stream(name):
        current.name = name
        yield
        current.name = "default"

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current.name)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    current.name = "caller"
    prepared = ((n, getattr(current, "name", "default"), threading.get_ident()) for n in range(5))
    found = list(_one_ahead(prepared, torch.device("cuda")))
    assert [(n, name) for n, name, _ in found] == [(n, "caller") for n in range(5)]
    assert threading.get_ident() not in {thread for _, _, thread in found}
