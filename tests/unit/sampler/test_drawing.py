"""Drawing: against a naive version in float64, over a grid of random numbers."""

import math

import pytest
import torch

from herl import Sampling
from herl.sampler.drawing import draw, penalize, penalizes, truncates
from tests.support.naive import drawn_from

SETTINGS = [
    Sampling(),
    Sampling(top_p=0.6),
    Sampling(top_k=3),
    Sampling(top_k=1000),
    Sampling(min_p=0.2),
    Sampling(temperature=0.7, top_p=0.9, top_k=7, min_p=0.05),
    Sampling(temperature=2.0, top_k=12, top_p=0.5),
    Sampling(temperature=0.0, top_p=0.5, top_k=2),
    Sampling(repetition_penalty=1.4),
    Sampling(presence_penalty=0.8, frequency_penalty=-0.3),
    Sampling(temperature=1.3, repetition_penalty=0.8, frequency_penalty=0.5, top_k=9),
]
PROMPT, ANSWER = (3, 4, 5, 5), (5, 6, 6, 6)


def drawn(logits, settings, uniform):
    """Draws row by row, each row by its own settings."""
    if any(map(penalizes, settings)):
        logits = penalize(logits, [PROMPT] * len(settings), [ANSWER] * len(settings), settings)
    return draw(
        logits,
        torch.tensor([s.temperature for s in settings]),
        torch.tensor([s.top_p for s in settings], dtype=torch.float64),
        torch.tensor([s.top_k for s in settings]),
        torch.tensor([s.min_p for s in settings], dtype=torch.float64),
        uniform,
        truncated=any(map(truncates, settings)),
        greedy=any(s.temperature == 0 for s in settings),
    )


def some_logits(rows, seed=0):
    return torch.randn(rows, 50, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("sampling", SETTINGS)
def test_tokens_are_drawn_with_the_log_probs_that_are_told(sampling):
    count = 20_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    logits = some_logits(1)
    ids, logprobs = drawn(logits.expand(count, -1), [sampling] * count, uniform)
    expected = drawn_from(logits[0], sampling, PROMPT, ANSWER)
    torch.testing.assert_close(logprobs, expected[ids].float(), rtol=0, atol=1e-5)
    assert logprobs.max() <= 0
    shares = ids.bincount(minlength=50) / count
    if sampling.temperature == 0:
        assert shares[expected.argmax()] == 1
    else:
        torch.testing.assert_close(shares.double(), expected.exp(), rtol=0, atol=1.5 / count)


def test_tokens_as_likely_as_the_last_of_the_top_k_are_kept():
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, 1.0, -3.0]]).expand(4, -1)
    uniform = torch.tensor([0.1, 0.5, 0.7, 0.99], dtype=torch.float64)
    ids, logprobs = drawn(logits, [Sampling(top_k=2)] * 4, uniform)
    assert set(ids.tolist()) == {1, 2, 3, 4}
    assert float(logprobs[0].exp()) == pytest.approx(math.e / (math.e + 3))


def test_a_row_is_drawn_alike_whatever_the_settings_of_others():
    logits = some_logits(len(SETTINGS), seed=1)
    uniform = torch.rand(len(SETTINGS), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together, logprobs = drawn(logits, SETTINGS, uniform)
    for row, sampling in enumerate(SETTINGS):
        some = slice(row, row + 1)
        alone, logprob = drawn(logits[some], [sampling], uniform[some])
        assert alone == together[row]
        assert logprob == logprobs[row]


def test_no_setting_leaves_the_logits_as_they_are():
    logits = some_logits(2)
    assert torch.equal(penalize(logits, [PROMPT] * 2, [ANSWER] * 2, [Sampling()] * 2), logits)


def test_a_plain_sampling_neither_penalizes_nor_truncates():
    assert not penalizes(Sampling())
    assert not truncates(Sampling())
    assert not truncates(Sampling(temperature=0.0, top_k=3))
    assert all(penalizes(Sampling(**{name: 0.5})) for name in ("presence_penalty", "frequency_penalty"))
    assert penalizes(Sampling(repetition_penalty=1.1))
    assert all(map(truncates, (Sampling(top_p=0.9), Sampling(top_k=1), Sampling(min_p=0.1))))
