"""Stage 9: experiences -> micro-batches of tensors.

Rows are laid out around the border between context and answer, so that all answers start in one column:

        context, padded left | answer, padded right
    row 0   . . c c c c c c  | a a a a .
    row 1   c c c c c c c c  | a a . . .

Logits are then needed for one slice of columns only. Rows of similar length share a micro-batch, cut by a
budget of padded tokens. What an answer weighs in the loss is fixed here for the whole optimiser step, so
that how the step is cut into micro-batches changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby, pairwise
from typing import Any

import torch

from herl.loss import Aggregation, token_weights
from herl.types import Experience


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Tensors of some experiences. B rows, C context columns, A answer columns, N answer tokens.

    Flat tensors [N] hold the answer tokens of row 0, then of row 1, and so on.
    """

    rows: tuple[int, ...]
    """Place of each row in the list of experiences that the micro-batch was cut from."""
    input_ids: torch.Tensor
    """[B, C + A], long. Padding is 0."""
    attention_mask: torch.Tensor
    """[B, C + A], long: 1 for tokens, 0 for padding."""
    position_ids: torch.Tensor
    """[B, C + A], long: 0 at each row's first token."""
    answer_mask: torch.Tensor
    """[B, A], bool: which answer columns hold tokens. Context never carries loss."""
    row: torch.Tensor
    """[N], long: row of each answer token."""
    advantage: torch.Tensor
    """[N], float."""
    weight: torch.Tensor
    """[N], float: what each token counts in the loss of the whole optimiser step."""
    revision: torch.Tensor
    """[N], bool: the answer is a revision."""
    sampler_logprobs: torch.Tensor
    """[N], float: log-probs of the sampler, under the context that it was sampled under."""
    old_logprobs: torch.Tensor | None = None
    """[N], float: the trainer's log-probs before this rollout batch's first optimiser step, under the
    training context. None where nothing has been updated since: they are then the current ones."""
    filler: bool = False
    """True where another rank trains on these rows and this one only keeps step: all weights are 0."""

    @property
    def answer_ids(self) -> torch.Tensor:
        """[N], long: the sampled ids."""
        return self.input_ids[:, -self.answer_mask.shape[1] :][self.answer_mask]

    def to(self, device: torch.device) -> MicroBatch:
        """Returns the micro-batch on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)


def split_by_group(experiences: Sequence[Experience], parts: int) -> list[list[Experience]]:
    """Splits experiences into at most `parts` lists of whole groups, about equally many groups each."""
    groups = [list(group) for _, group in groupby(experiences, key=lambda e: e.rollout.group_id)]
    count = min(parts, len(groups))
    borders = [round(i * len(groups) / count) for i in range(count + 1)] if count else []
    return [
        [experience for group in groups[start:end] for experience in group]
        for start, end in pairwise(borders)
    ]


def micro_batches(
    experiences: Sequence[Experience],
    *,
    max_tokens: int,
    aggregation: Aggregation,
    constant_length: int = 1,
    old_logprobs: Sequence[torch.Tensor | None] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[MicroBatch]:
    """Yields this rank's micro-batches of one optimiser step.

    Neighbours in the order of length go to different ranks, and every rank gets as many: where they do
    not come out even, the last ones repeat another rank's rows as a filler of weight 0, because a sharded
    model needs all ranks in every pass.

    Args:
        experiences: All experiences of the step, on all ranks.
        max_tokens: Padded tokens in a micro-batch. A single longer row still gets one of its own.
        aggregation: How the step's tokens are averaged (`herl.loss.token_weights`).
        constant_length: Tokens, for the aggregation `constant`.
        old_logprobs: For each experience, the trainer's log-probs before the update, [answer_len].
            None where another rank trains on it.
        rank: The rank that the micro-batches are for.
        world_size: Number of ranks.
    """
    answer_lengths = [len(e.rollout.token_ids) for e in experiences]
    weights = token_weights(answer_lengths, aggregation, constant_length)
    lengths = [(len(e.context_ids), len(e.rollout.token_ids)) for e in experiences]
    plan = _plan(lengths, max_tokens, world_size)
    for first in range(0, len(plan), world_size):
        # A filler's old log-probs are those of another rank; at weight 0 any will do.
        filler = first + rank >= len(plan)
        rows = plan[first if filler else first + rank]
        batch = _stack(experiences, rows, weights, None if filler else old_logprobs)
        yield replace(batch, weight=torch.zeros_like(batch.weight), filler=True) if filler else batch


def _plan(lengths: Sequence[tuple[int, int]], max_tokens: int, world_size: int) -> list[list[int]]:
    """Cuts the order of (context, answer) lengths into lists of rows, for each rank one if it can be."""
    order = sorted(range(len(lengths)), key=lambda i: (sum(lengths[i]), lengths[i][1]))
    plan: list[list[int]] = []
    rows: list[int] = []
    for i in order:
        context, answer = (max(lengths[j][side] for j in [*rows, i]) for side in (0, 1))
        if rows and (context + answer) * (len(rows) + 1) > max_tokens:
            plan.append(rows)
            rows = []
        rows.append(i)
    if rows:
        plan.append(rows)
    while len(plan) % world_size and len(widest := max(plan, key=len)) > 1:
        place, half = plan.index(widest), len(widest) // 2
        plan[place : place + 1] = [widest[:half], widest[half:]]
    return plan


def _stack(
    experiences: Sequence[Experience],
    rows: Sequence[int],
    weights: Sequence[float],
    old_logprobs: Sequence[torch.Tensor | None] | None,
) -> MicroBatch:
    chosen = [experiences[i] for i in rows]
    context = max(len(e.context_ids) for e in chosen)
    answer = max(len(e.rollout.token_ids) for e in chosen)
    input_ids = torch.zeros(len(chosen), context + answer, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, e in enumerate(chosen):
        first, end = context - len(e.context_ids), context + len(e.rollout.token_ids)
        input_ids[row, first:end] = torch.tensor([*e.context_ids, *e.rollout.token_ids])
        attention_mask[row, first:end] = 1
    answer_mask = attention_mask[:, context:].bool()
    row_of = torch.arange(len(chosen)).repeat_interleave(answer_mask.sum(1))

    def per_token(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)[row_of]

    return MicroBatch(
        rows=tuple(rows),
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
        answer_mask=answer_mask,
        row=row_of,
        advantage=per_token([e.advantage for e in chosen]),
        weight=per_token([weights[i] for i in rows]),
        revision=torch.tensor([e.origin == "hindsight" for e in chosen])[row_of],
        sampler_logprobs=torch.tensor([p for e in chosen for p in e.rollout.logprobs]),
        old_logprobs=None if old_logprobs is None else torch.cat([_known(old_logprobs[i]) for i in rows]),
    )


def _known(logprobs: torch.Tensor | None) -> torch.Tensor:
    assert logprobs is not None, "another rank's row"
    return logprobs
