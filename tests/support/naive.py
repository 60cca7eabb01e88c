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


def drawn_from(logits, sampling, prompt_ids=(), token_ids=()):
    """The log-probs [vocabulary], in float64, that a token is drawn with: -inf for those that never are."""
    scores = logits.double().clone()
    for token in set(prompt_ids) | set(token_ids):
        factor = sampling.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
    for token in set(token_ids):
        times = list(token_ids).count(token)
        scores[token] -= sampling.frequency_penalty * times + sampling.presence_penalty
    if sampling.temperature == 0:
        return scores.log_softmax(-1)
    scores = scores / sampling.temperature

    def keep(which):
        scores[~which] = -torch.inf

    probabilities = scores.softmax(-1)
    keep(probabilities >= sampling.min_p * probabilities.max())
    if sampling.top_k:
        keep(scores >= scores.sort(descending=True).values[min(sampling.top_k, len(scores)) - 1])
    if sampling.top_p < 1:
        probabilities, total, nucleus = scores.softmax(-1), 0.0, torch.zeros_like(scores, dtype=torch.bool)
        for token in probabilities.argsort(descending=True).tolist():
            if total >= sampling.top_p:
                break
            nucleus[token] = True
            total += float(probabilities[token])
        keep(nucleus)
    return scores.log_softmax(-1)


@torch.no_grad()
def logprobs_drawn_with(model, prompt_ids, token_ids, sampling):
    """The log-probs of an answer's tokens in the distributions that they were drawn from, one after the other."""
    ids, start = list(token_ids), len(prompt_ids)
    logits = model(input_ids=torch.tensor([[*prompt_ids, *ids]])).logits[0, start - 1 : -1]
    return tuple(
        float(drawn_from(logits[place], sampling, prompt_ids, ids[:place])[token])
        for place, token in enumerate(ids)
    )
