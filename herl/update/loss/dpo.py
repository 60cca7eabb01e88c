"""Stage 11: the preference of good answers over bad ones, without policy gradients (DPO).

    PreferenceLoss   -log sigmoid(beta (m_good - m_bad)), m = log pi(y) - log pi_ref(y)

A pair's two answers need not share a micro-batch or a rank: the gradient of DPO equals that of
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
    """DPO (arXiv:2305.18290) on pairs: in each group, the member above the mean against the one below.

    Args:
        aggregation: Must be `constant`, with a length of 1: log-probs are summed over an answer's tokens.
        beta: Inverse temperature: how far the policy may move from the reference.

    Since the reference, the better answer has gained 1 nat and the worse one has lost 1: the margin is
    0.1 (1 + 1), and each answer of the pair weighs beta sigmoid(-0.2), doubled for the mean over two answers.

    >>> from herl.testing import make_experience, make_rollout
    >>> pair = [
    ...     make_experience(make_rollout(id="good"), advantage=0.7),
    ...     make_experience(make_rollout(id="bad"), advantage=-0.7),
    ... ]
    >>> class Scores:
    ...     def sequence_logprobs(self, experiences, *, reference=False):
    ...         return [-5.0, -5.0] if reference else [-4.0, -6.0]
    >>> prepared, stats = PreferenceLoss(beta=0.1).prepare(pair, Scores())
    >>> [round(one.advantage, 4) for one in prepared]
    [0.09, -0.09]
    """

    aggregation: Aggregation = "constant"
    beta: float = 0.1

    def __post_init__(self) -> None:
        if not self.beta > 0 or self.aggregation != "constant" or self.constant_length != 1:
            raise ConfigError(
                "loss: expected beta above 0, aggregation constant and constant_length 1, "
                f"got {self.beta}, {self.aggregation} and {self.constant_length}"
            )

    @property
    def needs_reference(self) -> bool:
        """True."""
        return True

    def check(self, advantages: Sequence[float], training_context: str) -> None:
        """Refuses groups other than a better and a worse answer under one context."""
        if len(advantages) != 2:
            raise ConfigError(
                f"loss: expected two answers per group, got {len(advantages)}; use selection=extremes"
            )
        if max(advantages) <= 0 or min(advantages) >= 0:
            raise ConfigError(
                "loss: expected a better and a worse answer per group, got advantages of "
                f"{list(advantages)}; use advantages=group"
            )
        if training_context != "original":
            raise ConfigError(
                "rollout.training_context: expected original, so that both answers of a pair share their "
                f"context, got {training_context}"
            )

    def prepare(
        self, experiences: Sequence[Experience], scorer: Likelihoods
    ) -> tuple[list[Experience], Stats]:
        """Replaces advantages by the weights of pairs under the current policy.

        Each group consists of one answer with an advantage above 0 and one below, as selected by `extremes`.

        Raises:
            TrainingError: a group is not such a pair.
        """
        moved = [
            policy - reference
            for policy, reference in zip(
                scorer.sequence_logprobs(experiences),
                scorer.sequence_logprobs(experiences, reference=True),
                strict=True,
            )
        ]
        prepared = list(experiences)
        margins = []
        places = range(len(experiences))
        for _, group in groupby(places, key=lambda place: experiences[place].rollout.group_id):
            pair = sorted(group, key=lambda place: experiences[place].advantage)
            earned = [experiences[place].advantage for place in pair]
            if not any(earned):
                continue  # kept by rollout.keep_flat_groups: two equal answers have no preference
            if len(pair) != 2 or earned[0] >= earned[1]:
                raise TrainingError(
                    f"loss: expected a worse and a better answer per group, got advantages of {earned}"
                )
            bad, good = pair
            margins.append(self.beta * (moved[good] - moved[bad]))
            # times 2, since the loss is averaged over answers, but DPO's over pairs
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
