"""Shared by the samplers: the tokens that end an answer, and how an answer becomes a record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from herl.errors import SamplerError
from herl.sampler.thinking import split
from herl.types import Rollout, SampleRequest

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MARGIN = 8
"""Tokens decoded before those of a stop string, since the first may lack their space or half a character."""


@dataclass(slots=True)
class OpenAnswer:
    """An answer that is still being sampled."""

    request: SampleRequest
    index: int
    uniforms: np.ndarray
    """The answer's random numbers, one per token, [max_new_tokens]."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def end_token_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Returns the ids that end an answer: the generation config's and the tokenizer's."""
    configured = policy.generation_config.eos_token_id if policy.generation_config else None
    several = configured if isinstance(configured, list) else [configured]
    ids = frozenset(end for end in [*several, tokenizer.eos_token_id] if end is not None)
    if not ids:
        raise SamplerError("expected an end token in the tokenizer or the generation config, got none")
    return ids


def ends_by_stop(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Returns whether the last token completes one of the stop strings, or stands close behind one.

    Special tokens count as no text, as in vLLM. Only the end of the answer is decoded: a token that counts
    has at least one byte.
    """
    if not stop:
        return False
    special = set(tokenizer.all_special_ids)
    most = max(len(text.encode()) for text in stop) + MARGIN
    tail: list[int] = []
    for token in reversed(token_ids):
        if len(tail) == most:
            break
        if token not in special:
            tail.append(token)
    text = tokenizer.decode(tail[::-1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return any(one in str(text) for one in stop)


def finished_answer(
    request: SampleRequest,
    index: int,
    token_ids: Sequence[int],
    logprobs: Iterable[float],
    *,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: frozenset[int],
    version: int,
) -> Rollout:
    """Returns the record of answer `index` to a request.

    Its text is the answer alone, without special tokens; thinking is kept apart (`herl.sampler.thinking`).
    The token ids and log-probs are those of everything that was sampled. A stop string that ended the answer
    is part of its text, as it was sampled.
    """
    stopped = token_ids and (
        token_ids[-1] in end_ids or ends_by_stop(tokenizer, token_ids, request.sampling.stop)
    )
    parts = split(tokenizer, request.prompt_ids, token_ids)
    return Rollout.answering(
        request,
        index,
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs),
        text=parts.text,
        thinking=parts.thinking,
        thinking_tokens=parts.thinking_tokens,
        has_answer=parts.has_answer,
        finish_reason="stop" if stopped else "length",
        policy_version=version,
    )
