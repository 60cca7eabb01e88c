"""Draws tokens from logits by inverse transform, each row independently, from its own uniform number.

A row's token depends only on its logits, its settings and its number. Nothing here waits for a device.
"""

from __future__ import annotations

import torch


def draw(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    uniform: torch.Tensor,
    *,
    nucleus: bool,
    greedy: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws a token per row. Returns ids [rows] and their log-probs [rows] at the sampling temperature.

    With top-p below 1, log-probs still refer to the whole distribution, as the trainer computes them. Greedy
    answers (temperature 0) get the log-prob at temperature 1.

    Args:
        logits: [rows, vocabulary], float32.
        temperature: [rows], float32.
        top_p: [rows], float64.
        uniform: [rows], float64, in [0, 1).
        nucleus: Whether any top_p is below 1.
        greedy: Whether any temperature is 0.
    """
    at_zero = temperature == 0
    logprobs = torch.log_softmax(logits / temperature.masked_fill(at_zero, 1.0)[:, None], dim=-1)
    # float64, since a float32 running sum over 150k tokens errs by more than the probability of a rare token
    chosen = _inverse(logprobs.exp().cumsum(-1, dtype=torch.float64), uniform)[:, 0]
    if nucleus:
        mass, order = logprobs.exp().sort(dim=-1, descending=True)
        running = mass.cumsum(-1, dtype=torch.float64)
        running = (mass * (running - mass < top_p[:, None])).cumsum(-1, dtype=torch.float64)
        chosen = torch.where(top_p < 1, order.gather(1, _inverse(running, uniform))[:, 0], chosen)
    if greedy:
        chosen = torch.where(at_zero, logits.argmax(-1), chosen)
    return chosen, logprobs.gather(1, chosen[:, None])[:, 0]


def _inverse(running: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Returns the first index whose running sum exceeds uniform x total, [rows, 1]."""
    target = (uniform * running[:, -1])[:, None]
    return torch.searchsorted(running, target, right=True).clamp(max=running.shape[1] - 1)
