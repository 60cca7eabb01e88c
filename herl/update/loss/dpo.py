"""Stage 11 without policy gradients: likelihood of good answers, and preference of good over bad ones.

    LikelihoodLoss   -A log pi: with A = 1 on the best answers it is rejection fine-tuning
    PreferenceLoss   -log sigmoid(beta (m_good - m_bad)), m = log pi(y) - log pi_ref(y): DPO

A pair's two answers need not stand in one micro-batch, nor on one rank: the gradient of DPO is that of
-w (log pi(good) - log pi(bad)) with w = beta sigmoid(-margin), a number that is computed before the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from herl.errors import ConfigError, TrainingError
from herl.types import Experience
from herl.update.loss.base import Aggregation, Likelihoods, Stats
from herl.update.loss.sft import LikelihoodLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceLoss(LikelihoodLoss):
    """DPO (arXiv:2305.18290) on pairs: in each group the members above the mean against those below.

    Args:
        aggregation: `constant`, with a length of 1: log-probs of an answer are summed over its tokens.
        beta: Inverse temperature: how far the policy may move from the reference.
    """

    aggregation: Aggregation = "constant"
    beta: float = 0.1

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.aggregation != "constant" or self.constant_length != 1:
            raise ConfigError(
                "loss: expected beta above 0, aggregation constant and constant_length 1, "
                f"got {self.beta}, {self.aggregation} and {self.constant_length}"
            )

    @property
    def needs_reference(self) -> bool:
        """True."""
        return True

    def check(self, advantages: Sequence[float], training_context: str) -> None:
        """Refuses groups that are no pairs of a better and a worse answer under one context."""
        if len(advantages) != 2:
            raise ConfigError(
                f"loss: expected two answers of each group, got {len(advantages)}: use selection=extremes"
            )
        if max(advantages) <= 0 or min(advantages) >= 0:
            raise ConfigError(
                "loss: expected a better and a worse answer of each group, got advantages of "
                f"{list(advantages)}: use advantages=group"
            )
        if training_context != "original":
            raise ConfigError(
                "rollout.training_context: expected original, under which both answers of a pair stand, got "
                f"{training_context}"
            )

    def prepare(
        self, experiences: Sequence[Experience], scorer: Likelihoods
    ) -> tuple[list[Experience], Stats]:
        """Replaces advantages by the weights of pairs under the policy as it is now.

        Each group has one answer with an advantage above 0 and one below, of the selection `extremes`.

        Raises:
            TrainingError: a group is no such pair.
        """
        moved = [
            policy - reference
            for policy, reference in zip(
                scorer.answer_logprobs(experiences),
                scorer.answer_logprobs(experiences, reference=True),
                strict=True,
            )
        ]
        prepared = list(experiences)
        margins = []
        places = range(len(experiences))
        for _, group in groupby(places, key=lambda place: experiences[place].rollout.group_id):
            pair = sorted(group, key=lambda place: experiences[place].advantage)
            earned = [experiences[place].advantage for place in pair]
            if len(pair) != 2 or earned[0] >= earned[1]:
                raise TrainingError(
                    f"loss: expected a worse and a better answer of each group, got advantages of {earned}"
                )
            bad, good = pair
            margins.append(self.beta * (moved[good] - moved[bad]))
            # the loss is averaged over answers, DPO's over pairs: twice
            weight = 2.0 * self.beta / (1.0 + math.exp(min(margins[-1], 700.0)))
            prepared[good] = replace(experiences[good], advantage=weight)
            prepared[bad] = replace(experiences[bad], advantage=-weight)
        return prepared, _preference_stats(torch.tensor(margins, dtype=torch.float64))


def _preference_stats(margins: torch.Tensor) -> Stats:
    count = torch.tensor(len(margins))
    loss = -torch.nn.functional.logsigmoid(margins)
    return Stats(
        means={
            "preference_loss": (loss.sum(), count),
            "preference_margin": (margins.sum(), count),
            "preference_accuracy": ((margins > 0).double().sum(), count),
        }
    )
