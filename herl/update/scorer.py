"""Stages 9 to 11 on one rank: experiences -> micro-batches -> log-probs -> loss.

One object holds the models and settings that a pass needs. The optimizer is not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from herl.distributed import gather, rank, world_size
from herl.hindsight.teacher import NO_TEACHER, Teacher
from herl.models.lora import adapters_off
from herl.types import Experience, Rollout
from herl.update.batch import MicroBatch, Packing, micro_batches, unjudged
from herl.update.logprobs import answer_logprobs
from herl.update.loss.base import Loss, Stats, Tokens
from herl.update.teaching import with_teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores answers with the policy, and with the reference if the loss needs it."""

    policy: PreTrainedModel
    reference: PreTrainedModel | None
    """None if there is no reference, or if it is the policy without its adapters."""
    loss: Loss
    temperature: float
    """The sampling temperature of attempts."""
    max_tokens: int
    """Tokens in a micro-batch."""
    packing: Packing
    device: torch.device
    teacher: Teacher = NO_TEACHER
    entropy_floor: float | None = None
    """Nats below which a token gets no policy gradient; None for no floor."""

    def micro_batches(
        self,
        experiences: Sequence[Experience],
        old_logprobs: Sequence[torch.Tensor | None] | None = None,
        teacher_logprobs: Sequence[torch.Tensor | None] | None = None,
    ) -> Iterator[MicroBatch]:
        """Yields this rank's share of an optimizer step, on its device."""
        rows = micro_batches(
            experiences,
            max_tokens=self.max_tokens,
            aggregation=self.loss.aggregation,
            constant_length=self.loss.constant_length,
            old_logprobs=old_logprobs,
            teacher_logprobs=teacher_logprobs,
            rank=rank(),
            world_size=world_size(),
            packing=self.packing,
        )
        moved = (batch.to(self.device) for batch in rows)
        return moved if self.device.type == "cpu" else _one_ahead(moved, self.device)

    def compute_loss(self, batch: MicroBatch) -> tuple[torch.Tensor, Stats]:
        """Returns the loss of a micro-batch, with gradient, and its statistics."""
        ref_logprobs = self._ref_logprobs(batch) if self.loss.needs_ref_logprobs else None
        logprobs, entropy = answer_logprobs(
            self.policy, batch, self.temperature, entropy_grad=self.loss.entropy_coef != 0
        )
        old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        advantage, taught = batch.advantage, Stats()
        if batch.teacher_logprobs is not None and batch.taught is not None:
            advantage, taught = with_teacher(
                advantage, batch.teacher_logprobs, old, batch.taught, batch.row, self.teacher
            )
        loss, stats = self.loss(
            Tokens(
                logprobs=logprobs,
                entropy=entropy,
                old_logprobs=old,
                sampler_logprobs=batch.sampler_logprobs,
                advantage=advantage,
                weight=batch.weight,
                revision=batch.revision,
                row=batch.row,
                ref_logprobs=ref_logprobs,
                entropy_floor=self.entropy_floor,
            )
        )
        return loss, replace(stats, means={**stats.means, **taught.means}) if taught.means else stats

    @torch.no_grad()
    def _ref_logprobs(self, batch: MicroBatch) -> torch.Tensor:
        """Returns log-probs, [N], of the reference model, or of the policy without its adapters."""
        if self.reference is not None:
            return answer_logprobs(self.reference, batch, self.temperature)[0]
        with adapters_off(self.policy):
            return answer_logprobs(self.policy, batch, self.temperature)[0]

    def for_step(self, experiences: Sequence[Experience]) -> Scorer:
        """Returns the scorer of an optimizer step on these experiences: with a floor under the entropy, if
        the loss chooses tokens by it. All ranks must call it."""
        if self.loss.top_entropy_share >= 1:
            return self
        own = [
            entropy
            for batch in self.micro_batches(experiences)
            for entropy in self._entropies(batch).tolist()
        ]
        return replace(self, entropy_floor=floor_of(chain(*gather(own)), self.loss.top_entropy_share))

    @torch.no_grad()
    def _entropies(self, batch: MicroBatch) -> torch.Tensor:
        entropies = answer_logprobs(self.policy, batch, self.temperature)[1]
        return entropies[:0] if batch.filler else entropies

    def logprobs(self, experiences: Sequence[Experience]) -> list[torch.Tensor | None]:
        """Returns the policy's current log-probs of each experience under its training context,
        [answer_len] each, on the CPU.

        An entry is None if another rank trains on the experience: ranks divide answers as in the step.
        """
        found = self._logprobs(self.micro_batches(experiences))
        return [found.get(place) for place in range(len(experiences))]

    @torch.no_grad()
    def sequence_logprobs(self, experiences: Sequence[Experience], *, reference: bool = False) -> list[float]:
        """Returns the log-prob of each answer under its training context, in nats, summed over its tokens.

        Args:
            experiences: The answers. Each rank computes its share and gets all results.
            reference: Use the reference model instead of the policy.
        """
        found: dict[int, float] = {}
        for batch in self.micro_batches(experiences):
            if reference:
                logprobs = self._ref_logprobs(batch)
            else:
                logprobs = answer_logprobs(self.policy, batch, self.temperature)[0]
            if not batch.filler:
                sums = [float(answer.sum()) for answer in logprobs.cpu().split(batch.answer_lengths)]
                found.update(zip(batch.rows, sums, strict=True))
        shared = {place: value for part in gather(found) for place, value in part.items()}
        return [shared[place] for place in range(len(experiences))]

    def own_logprobs(self, rollouts: Sequence[Rollout]) -> torch.Tensor:
        """Returns the policy's log-probs of answers that only this rank has, [N] in their order, on the CPU.

        The number of passes depends only on the number of answers, so it is the same on every rank.
        """
        experiences = [unjudged(rollout) for rollout in rollouts]
        found = self._logprobs(
            batch.to(self.device)
            for batch in micro_batches(
                experiences, max_tokens=2**31, aggregation="token_mean", packing=self.packing
            )
        )
        return torch.cat([found[place] for place in range(len(rollouts))])

    @torch.no_grad()
    def _logprobs(self, batches: Iterable[MicroBatch]) -> dict[int, torch.Tensor]:
        # read after the last pass, so that a GPU need not wait
        passes = [
            (batch.rows, batch.answer_lengths, answer_logprobs(self.policy, batch, self.temperature)[0])
            for batch in batches
        ]
        return {
            place: logprobs
            for places, lengths, found in passes
            for place, logprobs in zip(places, found.cpu().split(lengths), strict=True)
        }


def floor_of(entropies: Iterable[float], share: float) -> float:
    """Returns the entropy that the highest `share` of tokens reach, in nats.

    They are those at or above the quantile 1 - share, as in TRL. The floor lies halfway to the next token
    below them, so that it does not depend on how a forward pass rounds.

    >>> floor_of([0.5, 3.0, 1.0, 2.0, 0.0], share=0.4)
    1.5
    """
    values = np.sort(np.fromiter(entropies, dtype=np.float64))
    if not np.isfinite(values).all() or not len(values):
        return -math.inf  # the loss is not finite either, and the step is skipped
    first = np.searchsorted(values, np.quantile(values, 1.0 - share))
    return float(values[first] + values[first - 1]) / 2.0 if first else -math.inf


def _one_ahead(batches: Iterator[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Yields micro-batches while a thread prepares the next one, so that a GPU does not wait for it.

    The thread copies on the CUDA stream of its caller, which need not be the default one: what the caller
    computes then comes after the copies.
    """
    stream = torch.cuda.current_stream(device)

    def following() -> MicroBatch | None:
        with torch.cuda.stream(stream):  # each thread has its own current stream
            return next(batches, None)

    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(following)
        while (batch := coming.result()) is not None:
            coming = thread.submit(following)
            yield batch
