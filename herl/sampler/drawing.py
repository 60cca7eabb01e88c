"""Draws tokens from logits by inverse transform, each row independently, from its own uniform number.

A row's token depends only on its logits, its settings and its number. Nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from herl.types import Sampling


def penalizes(sampling: Sampling) -> bool:
    """Returns whether a token's chance depends on which tokens were there before."""
    penalties = sampling.repetition_penalty - 1.0, sampling.presence_penalty, sampling.frequency_penalty
    return any(penalties)


def truncates(sampling: Sampling) -> bool:
    """Returns whether some tokens are never drawn because they are unlikely."""
    return sampling.temperature > 0 and (sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0)


def draw(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    top_k: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
    *,
    truncated: bool,
    greedy: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws a token per row. Returns ids [rows] and the log-probs [rows] with which they were drawn.

    Greedy answers (temperature 0) get the log-prob at temperature 1, and are not truncated.

    Args:
        logits: [rows, vocabulary], float32.
        temperature: [rows], float32.
        top_p: [rows], float64.
        top_k: [rows], long; 0 for all tokens.
        min_p: [rows], float64.
        uniform: [rows], float64, in [0, 1).
        truncated: Whether any row has top_p below 1, or top_k or min_p above 0.
        greedy: Whether any temperature is 0.
    """
    at_zero = temperature == 0
    logprobs = torch.log_softmax(logits / temperature.masked_fill(at_zero, 1.0)[:, None], dim=-1)
    # float64, since a float32 running sum over 150k tokens errs by more than the probability of a rare token
    chosen = _inverse(logprobs.exp().cumsum(-1, dtype=torch.float64), uniform)[:, 0]
    if truncated:
        mass, order = logprobs.exp().sort(dim=-1, descending=True)
        running = (mass * _kept(mass, top_p, top_k, min_p)).cumsum(-1, dtype=torch.float64)
        limited = ((top_p < 1) | (top_k > 0) | (min_p > 0)) & ~at_zero
        chosen = torch.where(limited, order.gather(1, _inverse(running, uniform))[:, 0], chosen)
    if greedy:
        chosen = torch.where(at_zero, logits.argmax(-1), chosen)
    drawn = logprobs.gather(1, chosen[:, None])[:, 0]
    if truncated:  # of the kept tokens alone
        drawn = torch.where(limited, (drawn - running[:, -1].log()).clamp(max=0.0).to(drawn.dtype), drawn)
    return chosen, drawn


def _kept(mass: torch.Tensor, top_p: torch.Tensor, top_k: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Returns which tokens may be drawn, [rows, vocabulary], from probabilities in descending order.

    Each setting sees what the one before has left: min_p, top_k, top_p. Tokens as likely as the last of the
    top k are kept, too.
    """
    kept = mass >= (min_p[:, None] * mass[:, :1])
    last = (top_k - 1).clamp(min=0, max=mass.shape[1] - 1)[:, None]
    kept &= (mass >= mass.gather(1, last)) | (top_k == 0)[:, None]
    left = mass * kept
    running = left.cumsum(-1, dtype=torch.float64)
    return kept & ((running - left < top_p[:, None] * running[:, -1:]) | (top_p >= 1)[:, None])


def penalize(
    logits: torch.Tensor,
    prompt_ids: Sequence[Sequence[int]],
    token_ids: Sequence[Sequence[int]],
    settings: Sequence[Sampling],
) -> torch.Tensor:
    """Returns the logits with the penalties of each row, [rows, vocabulary].

    Args:
        logits: [rows, vocabulary], float32.
        prompt_ids: The prompt of each row.
        token_ids: The tokens of each answer so far.
        settings: The settings of each row.
    """
    counts = torch.zeros_like(logits)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompt_ids, token_ids, strict=True)):
        drawn = torch.tensor(answer, dtype=torch.long, device=logits.device)
        counts[row] = drawn.bincount(minlength=logits.shape[1])
        seen[row, torch.tensor(prompt, dtype=torch.long, device=logits.device)] = True
    seen |= counts > 0

    def by_row(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=logits.dtype, device=logits.device)[:, None]

    repeated = by_row([one.repetition_penalty for one in settings])
    logits = torch.where(seen, torch.where(logits > 0, logits / repeated, logits * repeated), logits)
    logits = logits - by_row([one.frequency_penalty for one in settings]) * counts
    return logits - by_row([one.presence_penalty for one in settings]) * (counts > 0)


def _inverse(running: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Returns the first index whose running sum exceeds uniform x total, [rows, 1]."""
    target = (uniform * running[:, -1])[:, None]
    return torch.searchsorted(running, target, right=True).clamp(max=running.shape[1] - 1)
