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
    The token ids and log-probs are those of everything that was sampled.
    """
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
        finish_reason="stop" if token_ids and token_ids[-1] in end_ids else "length",
        policy_version=version,
    )
