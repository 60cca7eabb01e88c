"""Stage 11: the interface of a loss, its inputs, and the weight of each token.

All tensors are [N]: one entry per answer token of a micro-batch. Token weights are fixed in advance for the
whole optimizer step (`token_weights`), so the losses of its micro-batches add up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from herl.types import Experience

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Statistics by name, in a form that adds up over micro-batches."""

    means: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """(sum, count) of each mean."""
    maxima: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Values to take the maximum of, [any]; -inf counts as no value."""
    percentiles: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Values to take percentiles of, [any]."""


def token_weights(lengths: Sequence[int], aggregation: Aggregation, constant_length: int = 1) -> list[float]:
    """Returns the weight of each answer's tokens in the loss of one optimizer step.

    Args:
        lengths: Tokens of every answer of the step.
        aggregation: `token_mean` over all tokens of the step (DAPO, arXiv:2503.14476);
            `sequence_mean`, the mean over answers of the mean over tokens (GRPO);
            `constant`, sums divided by answers x `constant_length` (Dr.GRPO, arXiv:2503.20783).
        constant_length: Tokens, for `constant`.

    Answers of 1 and 3 tokens: the same for every token, or for every answer.

    >>> token_weights([1, 3], "token_mean")
    [0.25, 0.25]
    >>> [round(weight, 3) for weight in token_weights([1, 3], "sequence_mean")]
    [0.5, 0.167]
    >>> token_weights([1, 3], "constant", constant_length=10)
    [0.05, 0.05]
    """
    count = len(lengths)
    if not count:
        return []
    if aggregation == "token_mean":
        return [1.0 / sum(lengths)] * count
    if aggregation == "sequence_mean":
        return [1.0 / (count * length) for length in lengths]
    return [1.0 / (count * constant_length)] * count


def sums_by_answer(values: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Returns sums by answer, [N], in a fixed order even on a GPU. Entries beyond the last answer are 0."""
    borders = torch.searchsorted(row, torch.arange(len(row) + 1, device=row.device))
    return torch.segment_reduce(values, "sum", offsets=borders, initial=0.0, unsafe=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The inputs of a loss, [N] each. See `herl.update.batch.MicroBatch`."""

    logprobs: torch.Tensor
    """Log-probs of the current policy, with gradient."""
    entropy: torch.Tensor
    old_logprobs: torch.Tensor
    sampler_logprobs: torch.Tensor
    advantage: torch.Tensor
    weight: torch.Tensor
    revision: torch.Tensor
    row: torch.Tensor
    ref_logprobs: torch.Tensor | None = None
    """None unless the loss `needs_ref_logprobs`."""
    entropy_floor: float | None = None
    """Nats below which a token gets no policy gradient; None for no floor."""


class Likelihoods(Protocol):
    """Log-probs of whole answers: the view of the models that `Loss.prepare` gets."""

    def sequence_logprobs(self, experiences: Sequence[Experience], *, reference: bool = False) -> list[float]:
        """Returns the log-prob of each answer, in nats, summed over its tokens, on every rank."""
        ...


class Loss(ABC):
    """The loss of one micro-batch, from its flat answer tokens."""

    __slots__ = ()
    aggregation: Aggregation
    """How the tokens of an optimizer step are averaged (`token_weights`)."""
    constant_length: int
    entropy_coef: float
    """Weight of the entropy bonus; 0 keeps the entropy out of the graph."""
    top_entropy_share: float = 1.0
    """Share of a step's tokens, those with the highest entropy, that get a policy gradient."""
    ref_sync_steps: int | None = None
    """Optimizer steps after which the reference moves toward the policy; None if it never does."""
    ref_sync_rate: float = 1.0
    """How far it moves, in (0, 1]: 1 replaces it by the policy."""

    @abstractmethod
    def __call__(self, tokens: Tokens) -> tuple[torch.Tensor, Stats]:
        """Returns (loss, stats). The loss is a scalar, which adds to those of other micro-batches."""

    @property
    def needs_reference(self) -> bool:
        """Whether to load a reference model."""
        return False

    @property
    def needs_ref_logprobs(self) -> bool:
        """Whether to compute `Tokens.ref_logprobs`."""
        return False

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether to keep the log-probs from before a batch's first optimizer step for its later ones."""
        return True

    @property
    def needs_on_policy(self) -> bool:
        """Whether attempts must be drawn from the weights that an update begins with, and from the policy's
        whole distribution, since nothing corrects for others (`rollout.batches_ahead`, `rollout.attempt`).
        True by default."""
        return True

    @property
    def needs_drawn_revisions(self) -> bool:
        """Whether revisions are weighed by the sampler's probability of them, which is not that of a draw if
        they are greedy (`rollout.revision.temperature`). False by default."""
        return False

    def check(self, advantages: Sequence[float], training_context: str) -> None:
        """Refuses settings that the loss cannot learn from, before anything is loaded; by default, none.

        Args:
            advantages: Those of the members that selection keeps of a group whose attempts all differ.
            training_context: `herl.rollout.stages.RolloutPlan.training_context`.

        Raises:
            ConfigError: says what to use instead.
        """
        return None

    def prepare(
        self, experiences: Sequence[Experience], scorer: Likelihoods
    ) -> tuple[list[Experience], Stats]:
        """Returns the experiences to train on, and statistics, right before an optimizer step. Unchanged by
        default."""
        return list(experiences), Stats()
