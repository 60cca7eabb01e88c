"""Naive versions of herl's fast paths: one padded row per answer, all logits at once, no swapped interface.

Tests compare every fast path with it, and benchmarks measure against it.
"""

import torch

from herl.update.loss.base import Tokens, token_weights


def padded_logprobs(model, experiences, temperature=1.0):
    """(log-probs [N], entropies [N]) of all answers in order, each after its own copy of the context, padded right."""
    rows = [[*e.context_ids, *e.rollout.token_ids] for e in experiences]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float() / temperature
    distribution = torch.log_softmax(logits, dim=-1)
    entropy = -(distribution.exp() * distribution).sum(-1)
    logprobs, entropies = [], []
    for row, e in enumerate(experiences):
        context, answer = len(e.context_ids), e.rollout.token_ids
        places = slice(context - 1, context + len(answer) - 1)
        logprobs.append(distribution[row, places].gather(-1, torch.tensor(answer)[:, None])[:, 0])
        entropies.append(entropy[row, places])
    return torch.cat(logprobs), torch.cat(entropies)


def padded_loss(model, experiences, loss, temperature=1.0):
    """The loss of a whole optimizer step in one pass, with the current log-probs as the old ones."""
    logprobs, entropy = padded_logprobs(model, experiences, temperature)
    lengths = [len(e.rollout.token_ids) for e in experiences]
    row = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    weights = token_weights(lengths, loss.aggregation, loss.constant_length)
    return loss(
        Tokens(
            logprobs=logprobs,
            entropy=entropy if loss.entropy_coef else entropy.detach(),
            old_logprobs=logprobs.detach(),
            sampler_logprobs=torch.tensor([p for e in experiences for p in e.rollout.logprobs]),
            advantage=torch.tensor([e.advantage for e in experiences])[row],
            weight=torch.tensor(weights)[row],
            revision=torch.tensor([e.origin == "hindsight" for e in experiences])[row],
            row=row,
        )
    )[0]
