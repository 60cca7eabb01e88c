"""Stage 2: prompts as token ids -> sampled answers as token ids with log-probabilities.

`Sampler` is the interface. `TransformersSampler` reads the live policy, `VLLMSampler` runs vLLM in this
process, `VLLMServerSampler` asks vLLM servers over HTTP; `ScriptedSampler` is a fake.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from herl.types import Rollout, SampleRequest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Sampler(ABC):
    """Draws answers from the policy.

    The framework calls `start` once, `load_weights` at every refresh and `generate` in between.
    """

    live: bool = False
    """True for a sampler that reads the trainer's own weights: it is never stale and needs no probe."""

    ranks_per_engine: int = 1
    """Neighbouring ranks that share one engine, and are all given the same requests."""

    engines: int = 1
    """Engines that answers are spread over: a probe asks for as many, to reach each."""

    @abstractmethod
    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Gets ready to sample from this policy. An engine of its own loads its copy here."""

    @abstractmethod
    def generate(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        """Yields `n` rollouts for every request, each as soon as it is finished, in any order.

        Answer i of a request depends on its prompt, its sampling settings and the hash of (seed, i)
        alone, never on what else is sampled.

        Raises:
            SamplerError: a request cannot be answered.
        """

    @abstractmethod
    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Takes new weights, streamed one tensor at a time, as policy version `version`.

        With several ranks, all must read the stream to its end or all leave it alone: it gathers shards.
        """

    def sleep(self) -> None:  # noqa: B027  # nothing to do is the right default
        """Frees what the update could use, until the next `generate` or `load_weights`."""

    def close(self) -> None:  # noqa: B027
        """Ends what `start` began."""


__all__ = ["Sampler"]
