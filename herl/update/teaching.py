"""Stage 10: what the told policy adds to each token's advantage (`herl.hindsight.teacher`).

    A_t + coef x clip(log pi_old(y_t | x, h) - log pi_old(y_t | x), -clip, clip), without gradient

Both log-probs are those of the policy before the batch's first optimizer step. The first is computed once for
the whole batch, under the teacher's contexts. The second are the old log-probs of the ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from herl.distributed import gather
from herl.hindsight.teacher import Teacher
from herl.types import Experience
from herl.update.loss.base import Stats, sums_by_answer

if TYPE_CHECKING:
    from herl.update.scorer import Scorer


def taught_logprobs(scorer: Scorer, experiences: Sequence[Experience]) -> dict[str, torch.Tensor]:
    """Returns the policy's current log-probs of each taught answer under the teacher's context, [answer_len]
    each, on the CPU, by rollout id.

    All ranks must call it. Each computes its share and gets all results, since the rows of the training
    contexts are divided among ranks in another way.
    """
    taught = [replace(e, context_ids=e.teacher_ids) for e in experiences if e.teacher_ids]
    own = {
        one.rollout.id: logprobs
        for one, logprobs in zip(taught, scorer.logprobs(taught), strict=True)
        if logprobs is not None
    }
    return {name: logprobs for part in gather(own) for name, logprobs in part.items()}


@torch.no_grad()
def with_teacher(
    advantage: torch.Tensor,
    teacher_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    taught: torch.Tensor,
    row: torch.Tensor,
    teacher: Teacher,
) -> tuple[torch.Tensor, Stats]:
    """Returns the advantages with the teacher's term, [N], and statistics of the term.

    Args:
        advantage: The rewarded advantage of each token, [N].
        teacher_logprobs: Log-probs of the told policy, [N].
        old_logprobs: Log-probs of the policy before the batch, [N].
        taught: Which tokens get a term, [N], bool.
        row: The answer of each token, [N], ascending.
        teacher: Holds the coefficient and the clip range.

    The first token is twice as likely under the teacher, the second impossible, and the third not taught.

    >>> old, told = torch.tensor([0.5, 0.5, 0.5]).log(), torch.tensor([1.0, 0.0, 1.0]).log()
    >>> taught, row = torch.tensor([True, True, False]), torch.tensor([0, 0, 0])
    >>> with_teacher(torch.ones(3), told, old, taught, row, Teacher(coef=0.5, clip=1.0))[0]
    tensor([1.3466, 0.5000, 1.0000])
    >>> with_teacher(torch.ones(3), told, old, taught, row, Teacher(coef=0.5, clip=1.0, center=True))[0]
    tensor([1.4233, 0.5767, 1.0000])
    """
    difference = torch.where(taught, teacher_logprobs - old_logprobs, 0.0)
    term = teacher.coef * difference.clamp(-teacher.clip, teacher.clip)
    if teacher.center:
        mean = sums_by_answer(term, row) / sums_by_answer(taught.float(), row).clamp(min=1.0)
        term = torch.where(taught, term - mean[row], 0.0)
    rewarded = taught & (advantage != 0)
    count = taught.sum()
    means = {
        "teacher_mean": (term.sum(), count),
        "teacher_size": (term.abs().sum(), count),
        "teacher_clipped": ((difference.abs() > teacher.clip).sum(), count),
        "teacher_agreement": ((rewarded & (term * advantage > 0)).sum(), rewarded.sum()),
        "teacher_share": (count, torch.tensor(len(taught))),
    }
    return advantage + term, Stats(means=means)
