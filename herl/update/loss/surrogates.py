"""Stage 11: the surrogates of the policy loss, as pure functions of ratios and advantages, [N] each.

ratio        rho_t = pi(y_t) / pi_behavior(y_t), per token
by_sequence  GSPO's: the geometric mean of the ratios of an answer, for each of its tokens
ppo_clip     max(-A rho, -A clip(rho, 1 - low, 1 + high)); for A < 0 at most -c A (dual clip)
cispo        -A sg(clip(rho, 1 - low, 1 + high)) log pi
sapo         -A sigmoid(tau (rho - 1)) 4 / tau
shaped       -A rho / (rho + gamma)
"""

from __future__ import annotations

import torch

from herl.update.loss.base import sums_by_answer


def ratio(logprobs: torch.Tensor, behavior_logprobs: torch.Tensor) -> torch.Tensor:
    """Returns exp(log pi - log pi_behavior) with the exponent clamped to [-20, 20].

    A token that has become twice as likely, and one that was impossible:

    >>> ratio(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.0]).log())
    tensor([2.0000e+00, 4.8517e+08])
    """
    return (logprobs - behavior_logprobs).clamp(-20.0, 20.0).exp()


def by_sequence(logprobs: torch.Tensor, behavior_logprobs: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Returns GSPO's ratio of each token, [N]: that of its answer, exp(mean_t(log pi - log pi_behavior)).

    This is GSPO-token (arXiv:2507.18071, section 4.3), sg(s) pi_t / sg(pi_t): each token has its own
    gradient, s times that of its log-prob. If an answer's tokens share one advantage, it equals GSPO in value
    and gradient; if they do not, as with a teacher, each token keeps its own. The exponent is clamped to
    [-20, 20].

    Args:
        logprobs: Log-probs of the current policy, [N].
        behavior_logprobs: Those of the policy that the ratio compares with, [N].
        row: The answer of each token, [N], ascending.

    An answer whose tokens have become 4 times and as likely, and another of one token.

    >>> row = torch.tensor([0, 0, 1])
    >>> by_sequence(torch.tensor([0.4, 0.5, 0.3]).log(), torch.tensor([0.1, 0.5, 0.1]).log(), row)
    tensor([2., 2., 3.])
    """
    difference = (logprobs - behavior_logprobs).detach()
    mean = sums_by_answer(difference, row) / sums_by_answer(torch.ones_like(difference), row).clamp(min=1.0)
    return mean[row].clamp(-20.0, 20.0).exp() * (logprobs - logprobs.detach()).exp()


def ppo_clip(
    rho: torch.Tensor,
    advantage: torch.Tensor,
    *,
    low: float,
    high: float,
    dual_clip: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (loss, clipped): the clipped surrogate (arXiv:1707.06347) and where it cuts the gradient.

    Args:
        dual_clip: Upper bound c of the loss at A < 0, as -c A (arXiv:1912.09729); None for no bound.

    Beyond the range the loss is flat, but only in the direction that the advantage has pushed already.

    >>> rho = torch.tensor([0.5, 1.0, 1.5, 4.0])
    >>> loss, cut = ppo_clip(rho, torch.tensor(1.0), low=0.2, high=0.2, dual_clip=3.0)
    >>> loss, cut
    (tensor([-0.5000, -1.0000, -1.2000, -1.2000]), tensor([False, False,  True,  True]))
    >>> loss, cut = ppo_clip(rho, torch.tensor(-1.0), low=0.2, high=0.2, dual_clip=3.0)
    >>> loss, cut
    (tensor([0.8000, 1.0000, 1.5000, 3.0000]), tensor([ True, False, False,  True]))
    """
    free = -advantage * rho
    clipped = -advantage * rho.clamp(1.0 - low, 1.0 + high)
    loss = torch.maximum(free, clipped)
    cut = clipped > free
    if dual_clip is not None:
        bound = -advantage * dual_clip
        over = (advantage < 0) & (loss > bound)
        loss = torch.where(over, bound, loss)
        cut = cut | over
    return loss, cut


def cispo(
    rho: torch.Tensor, logprobs: torch.Tensor, advantage: torch.Tensor, *, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (loss, cut): -A sg(clip(rho, 1 - low, 1 + high)) log pi (CISPO, arXiv:2506.13585, eq. 4), and
    where the weight is cut. Tokens beyond the range keep a gradient, with the weight at the border.

    The paper has no lower bound in practice: low = 1.

    >>> rho, logprobs = torch.tensor([0.5, 1.0, 8.0]), torch.tensor([-1.0, -1.0, -1.0])
    >>> cispo(rho, logprobs, torch.tensor(2.0), low=1.0, high=4.0)
    (tensor([ 1.,  2., 10.]), tensor([False, False,  True]))
    """
    fixed = rho.detach()
    weight = fixed.clamp(1.0 - low, 1.0 + high)
    return -advantage * weight * logprobs, weight != fixed


def sapo(
    rho: torch.Tensor, advantage: torch.Tensor, *, tau_positive: float, tau_negative: float
) -> torch.Tensor:
    """Returns -A sigmoid(tau (rho - 1)) 4 / tau, with tau by the sign of A (SAPO, arXiv:2511.20347).

    At rho = 1 the gradient is that of -A rho; it fades on both sides instead of being cut.

    >>> rho = torch.tensor([0.0, 1.0, 9.0])
    >>> sapo(rho, torch.tensor(1.0), tau_positive=1.0, tau_negative=2.0)
    tensor([-1.0758, -2.0000, -3.9987])
    """
    tau = torch.full_like(rho, tau_negative).masked_fill(advantage > 0, tau_positive)
    return -advantage * torch.sigmoid(tau * (rho - 1.0)) * 4.0 / tau


def shaped(rho: torch.Tensor, advantage: torch.Tensor, gamma: float) -> torch.Tensor:
    """Returns -A rho / (rho + gamma), LUFFY's shaping (arXiv:2504.14945); -A rho at gamma <= 0.

    At rho = 1, its gradient is gamma / (1 + gamma)^2 times the plain one: 0.25 times at gamma = 1.

    >>> rho = torch.tensor([0.1, 1.0, 10.0])
    >>> shaped(rho, torch.tensor(1.0), gamma=1.0)
    tensor([-0.0909, -0.5000, -0.9091])
    >>> shaped(rho, torch.tensor(1.0), gamma=0.0)
    tensor([ -0.1000,  -1.0000, -10.0000])
    """
    return -advantage * (rho / (rho + gamma) if gamma > 0 else rho)
