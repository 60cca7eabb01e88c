"""Stage 2: prompts as token ids -> sampled answers as token ids with log-probabilities.

`Sampler` is the interface. `TransformersSampler` reads the live policy, `VLLMSampler` runs vLLM in this
process, `VLLMServerSampler` queries vLLM servers over HTTP; `ScriptedSampler` is a fake.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from herl.errors import ConfigError
from herl.types import Rollout, SampleRequest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class More(Protocol):
    """Returns the requests that have arrived since the last call."""

    def __call__(self, wait: bool, /) -> Sequence[SampleRequest]:
        """Returns further requests. With `wait`, blocks until there are some or there will be no more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CardNeeds:
    """Memory facts for an engine on the trainer's GPU; GiB are estimates of `herl.update.gpu_cost`."""

    parameters: int
    """Number of the model's parameters."""
    kv_bytes: int
    """Bytes of the keys and values of one token, in bfloat16."""
    resident_gib: float
    """The trainer's memory while answers are sampled and probed: weights, moments, and what FSDP gathers."""
    update_gib: float
    """The trainer's peak memory during an update: gradients and activations are added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """The requirements of a run on its sampler."""

    longest_tokens: int
    """Maximum number of tokens of a prompt with its answer."""
    dtype: torch.dtype
    """Data type of the trainer's computation."""
    refreshed_every_batch: bool
    """Whether new weights come before every batch after an update."""
    card: CardNeeds | None = None
    """None if the trainer runs on a CPU."""


class Sampler(ABC):
    """Draws answers from the policy.

    The framework calls `start` once, `load_weights` at every refresh, and `stream` in between.
    """

    live: bool = False
    """True for a sampler that reads the trainer's own weights: it is never stale and needs no probe."""

    ranks_per_engine: int = 1
    """Number of neighboring ranks that share one engine and all get the same requests."""

    engines: int = 1
    """Number of engines that share the requests; the probe needs enough answers to reach each."""

    weights_dtype: torch.dtype | None = None
    """Data type the engine computes in, known after `start`; weights are streamed in it. None: unchanged."""

    checkpoint_names: bool = True
    """Whether weights are streamed with a checkpoint's names and shapes, as engines load them. If False, they
    have the names and shapes of the policy's parameters, for a copy of the same class."""

    has_weights: bool = True
    """False once the sampler has dropped its weights; it must be refreshed before it samples again."""

    def prepare(self, limits: RunLimits) -> None:  # noqa: B027  # nothing to do is the right default
        """Receives the run's requirements. Called before `start`. Does nothing by default."""

    def check_ahead(self, *, device_type: str, sharded: bool) -> None:
        """Checks, before `start`, that the sampler can work in another thread while the policy is updated
        (`rollout.batches_ahead`). By default it can, unless it is `live`. It then does not `sleep`.

        Args:
            device_type: Where the policy is trained, "cpu" or "cuda".
            sharded: Whether no rank holds the whole policy.

        Raises:
            ConfigError: it cannot, e.g. because it reads the weights that are being updated.
        """
        if self.live:
            raise ConfigError(
                "rollout.batches_ahead: expected 0, or a sampler that keeps its own weights, got "
                f"{type(self).__name__}, which reads the policy while it is updated"
            )

    @abstractmethod
    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Prepares to sample from this policy. A separate engine loads its copy here."""

    @abstractmethod
    def generate(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        """Yields a rollout for each of a request's `indices`, as soon as it is finished, in any order.

        Answer i of a request depends only on its prompt, its sampling settings and the hash of (seed, i),
        never on other requests.

        Raises:
            SamplerError: a request cannot be answered.
        """

    def stream(self, requests: Sequence[SampleRequest], more: More) -> Iterator[Rollout]:
        """Like `generate`, but may accept more requests while it works.

        By default it never does, and the framework samples revisions once all attempts are judged.

        Args:
            requests: The initial requests.
            more: Returns further requests (`StreamingSampler`).

        Raises:
            SamplerError: a request cannot be answered.
        """
        return self.generate(requests)

    @abstractmethod
    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Loads new weights, streamed one tensor at a time, as policy version `version`.

        The stream gathers shards, so either all ranks must read it to the end or none may read it.
        """

    def lost_weights(self) -> Sequence[str] | None:
        """Returns the names of streamed tensors that the engine does not hold, after each `load_weights`.

        An empty list proves that the weights arrived. None, the default, is for a sampler that cannot inspect
        its engine. Then only the probe checks the weights; in bfloat16 it catches gross faults but can miss,
        say, a layer that is one step behind. All ranks call this method; test yours with
        `herl.testing.check_lost_weights`.
        """
        return None

    def sleep(self) -> None:  # noqa: B027  # nothing to do is the right default
        """Frees memory for the update, until the next `generate` or `load_weights`."""

    def close(self) -> None:  # noqa: B027
        """Releases everything `start` acquired."""


class StreamingSampler(Sampler):
    """A sampler that accepts new requests while it works on others.

    A prompt's attempts are then revised as soon as they are judged. Which requests are batched together
    depends on timing, and so does rounding: do not subclass this if answers must be bit-identical across
    runs.
    """

    def generate(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        return self.stream(requests, nothing_more)

    @abstractmethod
    def stream(self, requests: Sequence[SampleRequest], more: More) -> Iterator[Rollout]:
        """Like `generate`, but asks for more requests whenever there is room.

        Args:
            requests: The initial requests.
            more: Call it with True when nothing is left to work on; if it returns nothing, stop.

        Raises:
            SamplerError: a request cannot be answered.
        """


def nothing_more(wait: bool) -> Sequence[SampleRequest]:
    """Returns no further requests."""
    return ()


__all__ = ["CardNeeds", "More", "RunLimits", "Sampler", "StreamingSampler", "nothing_more"]
