"""Stage 11: the policy loss, as pure functions on flat answer tokens; `PolicyLoss` holds the options.

All tensors are [N]: one entry per answer token of a micro-batch. Token weights are fixed in advance for the
whole optimizer step (`token_weights`), so the losses of micro-batches simply add up.

    ratio       rho = exp(clamp(log pi - log pi_behavior, -20, 20))
    attempts    PPO: max(-A rho, -A clip(rho, 1 - low, 1 + high)); for A < 0 at most -c A (dual clip)
    revisions   a separate ratio (`revision_ratio`), then PPO as for attempts, or shaped:
                -A rho / (rho + gamma)
    plus        kl_coef * k3(pi || pi_ref) - entropy_coef * entropy
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from herl.errors import ConfigError, check_at_least
from herl.update.loss.base import Aggregation, Loss, Stats, Tokens, sums_by_answer

RevisionRatio = Literal["same_context", "policy_prob", "cross_context"]
MismatchLevel = Literal["none", "token", "sequence"]


def ratio(logprobs: torch.Tensor, behavior_logprobs: torch.Tensor) -> torch.Tensor:
    """Returns exp(log pi - log pi_behavior) with the exponent clamped to [-20, 20].

    A token that has become twice as likely, and one that was impossible:

    >>> ratio(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.0]).log())
    tensor([2.0000e+00, 4.8517e+08])
    """
    return (logprobs - behavior_logprobs).clamp(-20.0, 20.0).exp()


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


def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Returns exp(d) - d - 1 with d = log pi_ref - log pi: an estimate, never < 0, of KL(pi || pi_ref).

    >>> k3(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.5, 0.5]).log())  # 2 - log 2 - 1 for the second
    tensor([0.0000, 0.3069])
    """
    d = ref_logprobs - logprobs
    return d.exp() - d - 1.0


def mismatch_weight(
    trainer_logprobs: torch.Tensor,
    sampler_logprobs: torch.Tensor,
    row: torch.Tensor,
    *,
    level: MismatchLevel,
    mode: Literal["truncate", "mask"],
    cap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (weights, cut): importance weights, without gradient, that correct for a sampler other than the
    trainer, and where the cap cuts them.

    Weights are pi_trainer / pi_sampler per token, or per answer (the product over its tokens). Above the cap,
    they are truncated to it or set to 0.

    Two answers of two tokens and one token. In the first, the trainer finds the tokens 4 times and half as
    likely as the sampler did, in the second as likely.

    >>> difference, row = torch.tensor([4.0, 0.5, 1.0]).log(), torch.tensor([0, 0, 1])
    >>> for level, mode in [("token", "truncate"), ("token", "mask"), ("sequence", "truncate")]:
    ...     mismatch_weight(difference, torch.zeros(3), row, level=level, mode=mode, cap=3.0)[0]
    tensor([3.0000, 0.5000, 1.0000])
    tensor([0.0000, 0.5000, 1.0000])
    tensor([2., 2., 1.])
    """
    difference = (trainer_logprobs - sampler_logprobs).detach()
    if level == "none":
        return torch.ones_like(difference), torch.zeros_like(difference, dtype=torch.bool)
    if level == "sequence":
        difference = sums_by_answer(difference, row)[row]
    weight = difference.clamp(-20.0, 20.0).exp()
    cut = weight > cap
    return weight.clamp(max=cap) if mode == "truncate" else weight * ~cut, cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """Correction for a sampler whose probabilities differ from the trainer's; applies only to attempts.

    Args:
        level: Weights per `token`, per `sequence`, or `none`.
        mode: Treatment above the cap: `truncate` the weight, or `mask` the token or answer.
        cap: Largest importance weight.
    """

    level: MismatchLevel = "none"
    mode: Literal["truncate", "mask"] = "truncate"
    cap: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss(Loss):
    """PPO's clipped loss on rubric advantages, with HeRL's options for revisions.

    Args:
        clip_low, clip_high: PPO clip range below and above 1.
        dual_clip: Bound at negative advantages, as a multiple of -A; None for no bound.
        revision_ratio: `same_context`: pi(y|c) / pi_old(y|c) under the training context c;
            `policy_prob`: pi(y|c), with a behavior probability of 1 (LUFFY);
            `cross_context`: pi(y|c) / pi_sampler(y|h), true importance sampling, truncated at
            `ratio_cap`.
        revision_shaping: `clip` as for attempts, or `shaped` with `gamma`.
        gamma: Shaping constant; if not above 0, revisions get the plain -A rho.
        ratio_cap: Largest ratio under `cross_context`.
        kl_coef: Weight of the KL to the reference policy. At 0 no reference is loaded.
        kl_clamp: Largest KL term of a token, beyond which it has no gradient (10 in the reference code); None
            for no limit. The curve of the KL is not clamped.
        entropy_coef: Weight of the entropy bonus.
        aggregation: See `token_weights`.
        constant_length: Tokens, for the aggregation `constant`.
        mismatch: Correction for a sampler with a separate engine.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = 3.0
    revision_ratio: RevisionRatio = "same_context"
    revision_shaping: Literal["clip", "shaped"] = "clip"
    gamma: float = 1.0
    ratio_cap: float = 2.0
    kl_coef: float = 0.0
    kl_clamp: float | None = None
    entropy_coef: float = 0.0
    aggregation: Aggregation = "token_mean"
    constant_length: int = 1
    mismatch: Mismatch = field(default_factory=Mismatch)

    def __post_init__(self) -> None:
        check_at_least("loss", 0, clip_low=self.clip_low, clip_high=self.clip_high, kl_coef=self.kl_coef)
        if self.dual_clip is not None and self.dual_clip <= 1.0 + self.clip_high:
            raise ConfigError(
                f"loss.dual_clip: expected more than 1 + clip_high = {1 + self.clip_high:g}, or null, "
                f"got {self.dual_clip}"
            )
        if self.kl_clamp is not None and self.kl_clamp <= 0:
            raise ConfigError(f"loss.kl_clamp: expected a number above 0, or null, got {self.kl_clamp}")

    @property
    def needs_reference(self) -> bool:
        """Whether the loss has a KL term."""
        return self.kl_coef > 0

    @property
    def needs_ref_logprobs(self) -> bool:
        """Whether the loss has a KL term."""
        return self.kl_coef > 0

    def __call__(self, tokens: Tokens) -> tuple[torch.Tensor, Stats]:
        """Returns (loss, stats)."""
        behavior = self._behavior(tokens)
        rho = ratio(tokens.logprobs, behavior)
        if self.revision_ratio == "cross_context":
            rho = torch.where(tokens.revision, rho.clamp(max=self.ratio_cap), rho)
        per_token, cut = ppo_clip(
            rho,
            tokens.advantage,
            low=self.clip_low,
            high=self.clip_high,
            dual_clip=self.dual_clip,
        )
        if self.revision_shaping == "shaped":
            revised = shaped(rho, tokens.advantage, self.gamma)
            per_token = torch.where(tokens.revision, revised, per_token)
            cut = cut & ~tokens.revision
        correction, corrected_cut = self._correction(tokens)
        per_token = per_token * correction
        per_token = per_token - self.entropy_coef * tokens.entropy
        if tokens.ref_logprobs is not None:
            kl = k3(tokens.logprobs, tokens.ref_logprobs)
            if self.kl_clamp is not None:
                kl = kl.clamp(-self.kl_clamp, self.kl_clamp)
            per_token = per_token + self.kl_coef * kl
        stats = self._stats(tokens, rho, cut, correction, corrected_cut)
        return (tokens.weight * per_token).sum(), stats

    def _behavior(self, tokens: Tokens) -> torch.Tensor:
        old = tokens.old_logprobs
        if self.revision_ratio == "policy_prob":
            return torch.where(tokens.revision, torch.zeros_like(old), old)
        if self.revision_ratio == "cross_context":
            return torch.where(tokens.revision, tokens.sampler_logprobs, old)
        return old

    def _correction(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        weight, cut = mismatch_weight(
            tokens.old_logprobs,
            tokens.sampler_logprobs,
            tokens.row,
            level=self.mismatch.level,
            mode=self.mismatch.mode,
            cap=self.mismatch.cap,
        )
        return torch.where(tokens.revision, torch.ones_like(weight), weight), cut & ~tokens.revision

    def _stats(
        self,
        tokens: Tokens,
        rho: torch.Tensor,
        cut: torch.Tensor,
        correction: torch.Tensor,
        corrected_cut: torch.Tensor,
    ) -> Stats:
        with torch.no_grad():
            attempt, revision = ~tokens.revision, tokens.revision
            drift = k3(tokens.logprobs, tokens.old_logprobs)
            means = {
                "entropy": _over(tokens.entropy, attempt | revision),
                "clip_fraction_low": _over((cut & (rho < 1)).float(), attempt | revision),
                "clip_fraction_high": _over((cut & (rho > 1)).float(), attempt | revision),
                "kl_to_old": _over(drift, attempt | revision),
                "revision_ratio": _over(rho, revision),
                # KL(sampler || trainer) before the update, estimated from attempts
                "mismatch_kl": _over(k3(tokens.sampler_logprobs, tokens.old_logprobs), attempt),
                "mismatch_weight": _over(correction, attempt),
                "mismatch_clipped": _over(corrected_cut.float(), attempt),
            }
            if tokens.ref_logprobs is not None:
                means["kl_to_reference"] = _over(k3(tokens.logprobs, tokens.ref_logprobs), attempt | revision)
            difference = (tokens.old_logprobs - tokens.sampler_logprobs).abs()
            return Stats(
                means=means,
                maxima={"mismatch_max": difference.masked_fill(revision, -torch.inf)},
                percentiles={"ratio": rho.detach()},
            )


def _over(values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (values * mask).sum(), mask.sum()
