"""Stage 2: prompts as token ids -> sampled answers as token ids with log-probabilities.

`Sampler` is the interface. `TransformersSampler` reads the live policy, `VLLMSampler` runs vLLM in this
process, `VLLMServerSampler` asks vLLM servers over HTTP; `ScriptedSampler` is a fake.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from herl.types import Rollout, SampleRequest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class More(Protocol):
    """Returns the requests that have come up since the last call."""

    def __call__(self, wait: bool, /) -> Sequence[SampleRequest]:
        """Returns further requests. With `wait` it blocks until there are some, or there will be no more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CardNeeds:
    """What matters to an engine on the trainer's own GPU: estimates of `herl.update.gpu_cost` in GiB."""

    parameters: int
    """Of the model."""
    kv_bytes: int
    """Of the keys and values of one token, in bfloat16."""
    resident_gib: float
    """What the trainer keeps there while answers are sampled: weights and moments."""
    update_gib: float
    """The same with gradients and activations: the peak of an update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """What a run will ask of its sampler."""

    longest_tokens: int
    """Of a prompt with its answer."""
    dtype: torch.dtype
    """That the trainer computes in."""
    refreshed_every_batch: bool
    """Whether new weights come before every batch that follows an update."""
    card: CardNeeds | None = None
    """None where the trainer computes on a CPU."""


class Sampler(ABC):
    """Draws answers from the policy.

    The framework calls `start` once, `load_weights` at every refresh and `stream` in between.
    """

    live: bool = False
    """True for a sampler that reads the trainer's own weights: it is never stale and needs no probe."""

    ranks_per_engine: int = 1
    """Neighbouring ranks that share one engine, and are all given the same requests."""

    engines: int = 1
    """Engines that answers are spread over: a probe asks for as many, to reach each."""

    weights_dtype: torch.dtype | None = None
    """Type that the engine computes in, known after `start`: weights are streamed in it. None: unchanged."""

    checkpoint_names: bool = True
    """Whether weights are streamed under a checkpoint's names and in its shapes, as engines load them. False
    for a copy of the policy's own class, which has the names and shapes of the policy's parameters."""

    has_weights: bool = True
    """False once a sampler has dropped its weights: it must be refreshed before it samples again."""

    def prepare(self, limits: RunLimits) -> None:  # noqa: B027  # nothing to do is the right default
        """Takes note of what the run will ask. Called before `start`."""

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

    def stream(self, requests: Sequence[SampleRequest], more: More) -> Iterator[Rollout]:
        """Does what `generate` does, and may take in more requests while it works.

        By default it never asks for more, and the framework samples revisions once all attempts are judged.

        Args:
            requests: The requests to begin with.
            more: Returns further requests (`StreamingSampler`).

        Raises:
            SamplerError: a request cannot be answered.
        """
        return self.generate(requests)

    @abstractmethod
    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Takes new weights, streamed one tensor at a time, as policy version `version`.

        With several ranks, all must read the stream to its end or all leave it alone: it gathers shards.
        """

    def lost_weights(self) -> Sequence[str] | None:
        """Returns the names of streamed tensors that the engine does not hold, after each `load_weights`.

        An empty list is a proof that the weights arrived. None, the default, is for a sampler that cannot
        look into its engine: then only the probe checks it; in bfloat16 the probe sees gross faults but can
        miss, say, one layer that is a step behind. All ranks call it; `herl.testing.check_lost_weights`
        checks yours.
        """
        return None

    def sleep(self) -> None:  # noqa: B027  # nothing to do is the right default
        """Frees what the update could use, until the next `generate` or `load_weights`."""

    def close(self) -> None:  # noqa: B027
        """Ends what `start` began."""


class StreamingSampler(Sampler):
    """A sampler that takes new requests while it works on others.

    A prompt's attempts are then revised as soon as they are judged. Which requests are batched together
    depends on timing, and so does rounding: do not subclass this if answers must be bit-identical across
    runs.
    """

    def generate(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        return self.stream(requests, nothing_more)

    @abstractmethod
    def stream(self, requests: Sequence[SampleRequest], more: More) -> Iterator[Rollout]:
        """Does what `generate` does, and asks for more requests whenever it has room for some.

        Args:
            requests: The requests to begin with.
            more: Call it with True when nothing is left to work on; if it returns nothing, stop.

        Raises:
            SamplerError: a request cannot be answered.
        """


def nothing_more(wait: bool) -> Sequence[SampleRequest]:
    """Returns no further requests."""
    return ()


__all__ = ["CardNeeds", "More", "RunLimits", "Sampler", "StreamingSampler", "nothing_more"]
