"""Stage 11: estimates of KL(pi || pi_ref) by token, from d = log pi_ref - log pi, [N] each.

    k1  -d              unbiased; its gradient is 0 in expectation, so it belongs into the reward
    k2  d^2 / 2         biased as a value; on-policy its gradient is that of the KL of each token
    k3  exp(d) - d - 1  unbiased and never < 0 (http://joschu.net/blog/kl-approx.html); its gradient is biased

Which of them give the gradient of the KL is the subject of arXiv:2506.09477, arXiv:2510.01555 and
arXiv:2512.21852: k1 in the reward, and k2 in the loss. GRPO (arXiv:2402.03300) has k3 in the loss.
"""

from __future__ import annotations

from typing import Literal

import torch

KL = Literal["k1", "k2", "k3"]


def estimate(kind: KL, logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Returns an estimate of KL(pi || pi_ref) for each token, in nats.

    The second token is half as likely as in the reference.

    >>> pi, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.5, 0.5]).log()
    >>> [estimate(kind, pi, reference) for kind in ("k1", "k2", "k3")]
    [tensor([ 0.0000, -0.6931]), tensor([0.0000, 0.2402]), tensor([0.0000, 0.3069])]
    """
    if kind == "k1":
        return logprobs - ref_logprobs
    return (ref_logprobs - logprobs).square() / 2.0 if kind == "k2" else k3(logprobs, ref_logprobs)


def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Returns exp(d) - d - 1 with d = log pi_ref - log pi: an estimate, never < 0, of KL(pi || pi_ref).

    >>> k3(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.5, 0.5]).log())  # 2 - log 2 - 1 for the second
    tensor([0.0000, 0.3069])
    """
    d = ref_logprobs - logprobs
    return d.exp() - d - 1.0


def to_go(values: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Returns, for each token, the sum of the values from it to the end of its answer, [N].

    >>> to_go(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 0, 0, 1]))
    tensor([6., 5., 3., 4.])
    """
    # answer by answer: a sum over the whole row would let neighbors change an answer's rounding
    lengths = torch.unique_consecutive(row, return_counts=True)[1].tolist()
    return torch.cat([part.flip(0).cumsum(0).flip(0) for part in values.split(lengths)])
