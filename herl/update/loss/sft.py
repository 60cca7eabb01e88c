"""Stage 11: the likelihood of selected answers, -A log pi. With A = 1 on the best: rejection fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from herl.errors import ConfigError, check_at_least
from herl.update.loss.base import Aggregation, Loss, Stats, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelihoodLoss(Loss):
    """The loss -A log pi for every answer token.

    Args:
        aggregation: See `herl.update.loss.base.token_weights`.
        constant_length: Tokens, for the aggregation `constant`.
        entropy_coef: Weight of the entropy bonus.

    An answer of two tokens, with probabilities of 1/2 and 1/4: the loss is the mean of log 2 and log 4.

    >>> half, zeros = torch.full([2], 0.5), torch.zeros(2)
    >>> tokens = Tokens(
    ...     logprobs=torch.tensor([0.5, 0.25]).log(), entropy=zeros, old_logprobs=zeros,
    ...     sampler_logprobs=zeros, advantage=torch.ones(2), weight=half, revision=zeros.bool(),
    ...     row=torch.tensor([0, 0]),
    ... )
    >>> loss, stats = LikelihoodLoss()(tokens)
    >>> round(float(loss), 4)
    1.0397
    """

    aggregation: Aggregation = "token_mean"
    constant_length: int = 1
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        check_at_least("loss", 1, constant_length=self.constant_length)

    @property
    def needs_old_logprobs(self) -> bool:
        """False: there is no ratio."""
        return False

    @property
    def needs_on_policy(self) -> bool:
        """False: it learns from selected answers, however they were drawn."""
        return False

    def check(self, advantages: Sequence[float], training_context: str) -> None:
        """Refuses groups whose advantages are all 0, such as that of a single answer compared with itself."""
        if not any(advantages):
            raise ConfigError(
                "loss: expected members to learn from, got a selection and advantages that leave a group "
                f"with {list(advantages)}; use advantages=ones"
            )

    def __call__(self, tokens: Tokens) -> tuple[torch.Tensor, Stats]:
        """Returns (loss, stats)."""
        per_token = -tokens.advantage * tokens.logprobs - self.entropy_coef * tokens.entropy
        count = torch.tensor(len(tokens.logprobs))
        with torch.no_grad():
            means = {
                "entropy": (tokens.entropy.sum(), count),
                "logprob": (tokens.logprobs.sum(), count),
            }
        return (tokens.weight * per_token).sum(), Stats(means=means)
