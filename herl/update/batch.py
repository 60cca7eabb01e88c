"""Stage 9: experiences -> micro-batches of tensors, without padding.

An answer here is everything after its context. Of an episode, it holds the environment's replies too, which
are read and carry no loss: they are in the row, and not among its answer tokens.

Answers trained under the same context follow a single copy of it (`models/shared_attention.py`), and a row
holds several such pieces:

    [ context 1 | answer | answer | ... | context 2 | answer | ... ]

A row holds as many pieces as the token budget allows, and all rows take about equal work. Each answer's
weight in the loss is fixed here for the whole optimizer step, so the division into micro-batches changes
nothing.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import accumulate, chain, groupby, pairwise
from typing import Any, Literal

import numpy as np
import torch

from herl.models.block_mask import SharedContext, on_device
from herl.rollout.exchange import collector_paused
from herl.types import Experience, Judgement, Rollout
from herl.update.loss.base import Aggregation, token_weights

logger = logging.getLogger(__name__)

Packing = Literal["shared", "packed", "single"]
"""`shared`: one context for all its answers. `packed`: several answers in a row, each after its own copy of
the context, and distinguished by their positions. `single`: one answer per row."""

SPARE_ROWS = 0.01
"""Share of rows that are added at a time until all pieces fit: adding one by one would take minutes for large
batches."""
WORTH_A_WARNING = 0.25
"""Share of a group's tokens that rows may repeat, being too short for the group, before a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Tensors of one row of T tokens, N of which the policy sampled.

    Flat tensors [N] hold the sampled tokens of the row's first answer, then of the second, and so on.

    Two answers to the prompt 1 2 3 share one row, in which the prompt stands once. Token 3, in column 2,
    predicts the first token of both.

    >>> from herl.testing import make_experience, make_rollout
    >>> answers = [make_rollout(id=f"a{i}", token_ids=ids) for i, ids in enumerate([[4, 5], [6, 7, 8]])]
    >>> [batch] = micro_batches(
    ...     [make_experience(answers[0], advantage=1.0), make_experience(answers[1], advantage=-1.0)],
    ...     max_tokens=100, aggregation="token_mean",
    ... )
    >>> batch.input_ids  # the context, the first answer, the second answer
    tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    >>> batch.position_ids  # both answers go on where the context ends
    tensor([[0, 1, 2, 3, 4, 3, 4, 5]])
    >>> batch.answer_ids
    tensor([4, 5, 6, 7, 8])
    >>> batch.before  # the column that predicts each of them
    tensor([2, 3, 2, 5, 6])
    >>> batch.row  # the answer that each of them belongs to
    tensor([0, 0, 1, 1, 1])
    >>> batch.advantage, batch.weight
    (tensor([ 1.,  1., -1., -1., -1.]), tensor([0.2000, 0.2000, 0.2000, 0.2000, 0.2000]))
    """

    rows: tuple[int, ...]
    """Index of each answer in the list of experiences that the micro-batch was made from."""
    input_ids: torch.Tensor
    """[1, T], long."""
    position_ids: torch.Tensor
    """[1, T], long: 0 at each context's first token; every answer continues from its context."""
    contexts: tuple[SharedContext, ...]
    """Where contexts and answers lie in the row."""
    answer_lengths: tuple[int, ...]
    """Sampled tokens of each answer, which sum to N."""
    packing: Packing
    answer_ids: torch.Tensor
    """[N], long: the sampled ids."""
    before: torch.Tensor
    """[N], long: the column whose output predicts each answer token. Context never carries loss."""
    row: torch.Tensor
    """[N], long: the answer of the row that each token belongs to."""
    advantage: torch.Tensor
    """[N], float."""
    weight: torch.Tensor
    """[N], float: each token's weight in the loss of the whole optimizer step."""
    revision: torch.Tensor
    """[N], bool: whether the answer is a revision or replayed, that is, not an attempt at its training
    context."""
    sampler_logprobs: torch.Tensor
    """[N], float: the sampler's log-probs, under the context that the answer was sampled under."""
    old_logprobs: torch.Tensor | None = None
    """[N], float: the trainer's log-probs before this rollout batch's first optimizer step, under the
    training context. None if nothing has been updated since, so that they equal the current ones."""
    teacher_logprobs: torch.Tensor | None = None
    """[N], float: log-probs of the told policy, before the first optimizer step too; 0 where it does not
    teach. None without a teacher."""
    taught: torch.Tensor | None = None
    """[N], bool: the tokens whose advantage gets the teacher's term, which never are thinking. None without a
    teacher."""
    filler: bool = False
    """Whether another rank trains on these answers and this rank only keeps in step: all weights are 0."""
    last: bool = False
    """Whether this is the rank's last micro-batch of the optimizer step."""

    def to(self, device: torch.device) -> MicroBatch:
        """Returns the micro-batch on a device. Does not wait for a GPU's pending work."""
        moved: dict[str, Any] = {
            field.name: on_device(value, device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)


def unjudged(rollout: Rollout) -> Experience:
    """Wraps an answer for computing its log-probs under the context that it was sampled under."""
    return Experience(
        rollout=rollout,
        judgement=Judgement(rollout_id=rollout.id, verdicts=(), reward=None),
        reward=0.0,
        bonus=0.0,
        advantage=0.0,
        context_ids=rollout.prompt_ids,
    )


def split_by_group(experiences: Sequence[Experience], parts: int) -> list[list[Experience]]:
    """Splits experiences into at most `parts` lists of whole groups, with about equally many groups each."""
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
    teacher_logprobs: Sequence[torch.Tensor | None] | None = None,
    rank: int = 0,
    world_size: int = 1,
    packing: Packing = "shared",
) -> Iterator[MicroBatch]:
    """Yields this rank's micro-batches of one optimizer step.

    Ranks process rows of about equal length at the same time, and all ranks get the same number. If there are
    too few answers, a rank repeats another's row as a filler of weight 0, because a sharded model needs all
    ranks in every pass.

    Args:
        experiences: All experiences of the step, on all ranks.
        max_tokens: Most tokens in a micro-batch. A single answer that exceeds this with its context still
            gets one.
        aggregation: How the step's tokens are averaged (`herl.update.loss.base.token_weights`).
        constant_length: Tokens, for the aggregation `constant`.
        old_logprobs: For each experience, the trainer's log-probs before the update, [answer_len], or None
            if another rank trains on it.
        teacher_logprobs: For each experience, the told policy's log-probs, [answer_len], or None if it does
            not teach this answer; None for all without a teacher.
        rank: The rank that the micro-batches are for.
        world_size: Number of ranks.
        packing: How answers share a row.
    """
    answer_lengths = [len(e.rollout.token_ids) for e in experiences]
    weights = token_weights(answer_lengths, aggregation, constant_length)
    plan = _plan(experiences, max_tokens, world_size, packing)
    for first in range(0, len(plan), world_size):
        # A filler's old log-probs are on another rank; with weight 0, any values will do.
        filler = not plan[first + rank]
        pieces = plan[first if filler else first + rank]
        batch = _row(experiences, pieces, weights, None if filler else old_logprobs, packing)
        weight = torch.zeros_like(batch.weight) if filler else batch.weight
        batch = replace(batch, weight=weight, filler=filler, last=first + world_size >= len(plan))
        if teacher_logprobs is not None and not filler:
            batch = _with_teacher(batch, experiences, teacher_logprobs)
        yield batch


@dataclass(frozen=True, slots=True)
class _Piece:
    """Answers that will share one context, by their index among the experiences."""

    context: int
    """Tokens of the context."""
    answers: tuple[int, ...]
    lengths: tuple[int, ...]
    """Tokens of each answer, replies of an environment included."""

    @property
    def tokens(self) -> int:
        return self.context + sum(self.lengths)

    def split(self, parts: int) -> list[_Piece]:
        """Distributes the answers over parts of about equal length, each of which repeats the context."""
        dealt: list[list[int]] = [[] for _ in range(parts)]
        longest_first = sorted(range(len(self.answers)), key=lambda i: -self.lengths[i])
        for place, part in _even(longest_first, [self.lengths[i] for i in longest_first], parts):
            dealt[part].append(place)
        return [
            _Piece(
                self.context,
                tuple(self.answers[i] for i in sorted(part)),
                tuple(self.lengths[i] for i in sorted(part)),
            )
            for part in dealt
        ]


@collector_paused()
def _plan(
    experiences: Sequence[Experience], max_tokens: int, world_size: int, packing: Packing
) -> list[list[_Piece]]:
    """Returns a multiple of `world_size` rows; a row is empty only if there are fewer answers than ranks."""
    pieces = [part for piece in _pieces(experiences, packing) for part in _fitting(piece, max_tokens)]
    while (
        0 < len(pieces) < world_size and len(widest := max(pieces, key=lambda p: len(p.answers)).answers) > 1
    ):
        place = next(i for i, piece in enumerate(pieces) if piece.answers is widest)
        pieces[place : place + 1] = pieces[place].split(2)
    pieces.sort(key=lambda piece: -piece.tokens)
    lengths = [piece.tokens for piece in pieces]
    enough = len(pieces) if packing == "single" else math.ceil(sum(lengths) / max_tokens)
    alone = sum(2 * length > max_tokens for length in lengths)  # no two of them fit into a row
    count = math.ceil(min(max(enough, alone), len(pieces)) / world_size) * world_size
    while not _fits(lengths, count, max_tokens):
        count += math.ceil(count * SPARE_ROWS / world_size) * world_size
    rows: list[list[_Piece]] = [[] for _ in range(count)]
    for piece, row in _even(pieces, lengths, count):
        rows[row].append(piece)
    return sorted(rows, key=lambda row: -sum(piece.tokens for piece in row))


def _fits(lengths: Sequence[int], rows: int, max_tokens: int) -> bool:
    """Whether these pieces, longest first, fit into this many rows of about equal length, as `_even` fills
    them; a piece that is too long gets a row to itself."""
    loads = list(lengths[:rows]) + [0] * (rows - len(lengths))
    heapq.heapify(loads)
    return all(
        heapq.heapreplace(loads, loads[0] + length) + length <= max_tokens for length in lengths[rows:]
    )


def _pieces(experiences: Sequence[Experience], packing: Packing) -> list[_Piece]:
    together: dict[object, list[int]] = {}
    same: dict[int, list[int]] = {}  # by identity: hashing a context for each of its answers takes long
    for place, e in enumerate(experiences):
        if packing != "shared":
            together[place] = [place]
            continue
        places = same.get(id(e.context_ids))
        if places is None:
            places = same[id(e.context_ids)] = together.setdefault(e.context_ids, [])
        places.append(place)
    return [
        _Piece(
            len(experiences[places[0]].context_ids),
            tuple(places),
            tuple(experiences[place].rollout.length for place in places),
        )
        for places in together.values()
    ]


def _fitting(piece: _Piece, max_tokens: int) -> list[_Piece]:
    """Splits a piece into as few pieces as fit into rows; an answer that is too long still gets a row."""
    room = max(max_tokens - piece.context, 1)
    min_count = math.ceil(sum(piece.lengths) / room)
    for count in range(min_count, len(piece.answers)):
        parts = piece.split(count)
        if all(part.tokens <= max_tokens or len(part.answers) == 1 for part in parts):
            break
    else:
        parts = piece.split(len(piece.answers))
    if (len(parts) - 1) * piece.context > WORTH_A_WARNING * piece.tokens:
        _advise(max_tokens)
    return parts


@cache  # once
def _advise(max_tokens: int) -> None:
    logger.warning(
        "a group of answers with a long context does not fit into module.micro_batch_tokens=%d, so several "
        "rows compute the context; more tokens are faster, if memory allows",
        max_tokens,
    )


def _even(items: Sequence[Any], lengths: Sequence[int], parts: int) -> Iterator[tuple[Any, int]]:
    """Yields (item, part): each item, longest first, goes to the part with the least so far."""
    loads = [(0, part) for part in range(parts)]
    for item, length in zip(items, lengths, strict=True):
        load, part = loads[0]
        heapq.heapreplace(loads, (load + length, part))
        yield item, part


def _row(
    experiences: Sequence[Experience],
    pieces: Sequence[_Piece],
    weights: Sequence[float],
    old_logprobs: Sequence[torch.Tensor | None] | None,
    packing: Packing,
) -> MicroBatch:
    ids: list[int] = []
    positions: list[torch.Tensor] = []
    before: list[torch.Tensor] = []
    contexts: list[SharedContext] = []
    for piece in pieces:
        start, border = len(ids), len(ids) + piece.context
        ids += experiences[piece.answers[0]].context_ids
        positions.append(torch.arange(piece.context))
        for place, length in zip(piece.answers, piece.lengths, strict=True):
            rollout = experiences[place].rollout
            columns = len(ids) - 1 + _sampled(rollout)
            columns[:1] = border - 1  # the context's last token predicts the first of every answer
            before.append(columns)
            positions.append(torch.arange(piece.context, piece.context + length))
            ids += rollout.sequence
        borders = tuple(accumulate(piece.lengths, initial=border))
        contexts.append(SharedContext(start=start, answers=borders))
    rows = tuple(chain.from_iterable(piece.answers for piece in pieces))
    chosen = [experiences[place] for place in rows]
    lengths = tuple(len(e.rollout.token_ids) for e in chosen)
    row_of = torch.arange(len(chosen)).repeat_interleave(torch.tensor(lengths))

    def per_token(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)[row_of]

    return MicroBatch(
        rows=rows,
        input_ids=_tensor(ids, np.int64)[None],
        position_ids=torch.cat(positions)[None],
        contexts=tuple(contexts),
        answer_lengths=lengths,
        packing=packing,
        answer_ids=_tensor([token for e in chosen for token in e.rollout.token_ids], np.int64),
        before=torch.cat(before),
        row=row_of,
        advantage=per_token([e.advantage for e in chosen]),
        weight=per_token([weights[place] for place in rows]),
        revision=torch.tensor([e.origin != "policy" for e in chosen])[row_of],
        sampler_logprobs=_tensor([p for e in chosen for p in e.rollout.logprobs], np.float32),
        old_logprobs=None if old_logprobs is None else torch.cat([_known(old_logprobs[i]) for i in rows]),
    )


def _sampled(rollout: Rollout) -> torch.Tensor:
    """Returns the places, [answer_len], of the sampled tokens among all tokens after the prompt."""
    places = torch.arange(len(rollout.token_ids))
    for turn in rollout.turns:
        places[turn.end :] += len(turn.reply_ids)
    return places


def _tensor(values: list[Any], dtype: type[np.generic]) -> torch.Tensor:
    """Returns a long list as a tensor; through NumPy, this takes a fifth of the time."""
    return torch.from_numpy(np.array(values, dtype=dtype))


def _with_teacher(
    batch: MicroBatch,
    experiences: Sequence[Experience],
    logprobs: Sequence[torch.Tensor | None],
) -> MicroBatch:
    scores, taught = [], []
    for place in batch.rows:
        rollout, scored = experiences[place].rollout, logprobs[place]
        scores.append(torch.zeros(len(rollout.token_ids)) if scored is None else scored)
        said = [torch.arange(len(part)) >= thinking for part, thinking in rollout.parts]
        taught.append(torch.cat(said) & (scored is not None))
    return replace(batch, teacher_logprobs=torch.cat(scores), taught=torch.cat(taught))


def _known(logprobs: torch.Tensor | None) -> torch.Tensor:
    assert logprobs is not None, "another rank's answer"
    return logprobs
