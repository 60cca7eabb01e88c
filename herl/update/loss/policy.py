"""Stage 11: the policy loss, as pure functions on flat answer tokens; `PolicyLoss` holds the options.

All tensors are [N]: one entry per answer token of a micro-batch. Token weights are fixed in advance for the
whole optimizer step (`token_weights`), so the losses of micro-batches simply add up.

    ratio       rho, by token or by answer (GSPO)
    attempts    `surrogate`: PPO's clip, CISPO or SAPO (surrogates.py)
    revisions   a separate ratio (`revision_ratio`), then as for attempts, or shaped:
                -A rho / (rho + gamma)
    plus        kl_coef * KL(pi || pi_ref) - entropy_coef * entropy; or, with the KL in the reward,
                A_t - kl_coef * (sum of the KL from t to the end of the answer) (kl.py)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from herl.errors import ConfigError, check_above, check_at_least
from herl.update.loss.base import Aggregation, Loss, Stats, Tokens, sums_by_answer
from herl.update.loss.kl import KL, estimate, k3, to_go
from herl.update.loss.surrogates import by_sequence, cispo, ppo_clip, ratio, sapo, shaped

RevisionRatio = Literal["same_context", "policy_prob", "cross_context"]
MismatchLevel = Literal["none", "token", "sequence"]


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

    The sampler's probabilities are those that it drew with. Under penalties, weights correct the policy
    gradient, up to the cap, but neither the entropy bonus nor the KL. Under top_p, top_k and min_p, the
    weight of a token is the share of the policy's probability that was kept, and the gradient still lacks the
    tokens that were left out.

    Args:
        level: Weights per `token`, per `sequence`, or `none`.
        mode: Treatment above the cap: `truncate` the weight, or `mask` the token or answer.
        cap: Largest importance weight.
    """

    level: MismatchLevel = "none"
    mode: Literal["truncate", "mask"] = "truncate"
    cap: float = 2.0

    def __post_init__(self) -> None:
        check_above("loss.mismatch", 0, cap=self.cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss(Loss):
    """PPO's clipped loss on rubric advantages, with HeRL's options for revisions.

    Args:
        surrogate: `clip`, PPO's (arXiv:1707.06347); `cispo`, whose ratio is a clipped weight without
            gradient (arXiv:2506.13585); `sapo`, a smooth gate (arXiv:2511.20347). The formulas are in
            `herl.update.loss.surrogates`.
        ratio_level: Ratios by `token`, or one for a `sequence`, the geometric mean over its tokens (GSPO,
            arXiv:2507.18071).
        clip_low, clip_high: Clip range of the ratio below and above 1. A higher one above is DAPO's
            clip-higher (arXiv:2503.14476). Unused by `sapo`.
        dual_clip: Bound at negative advantages, as a multiple of -A; None for no bound. Only for `clip`.
        tau_positive, tau_negative: Temperatures of `sapo`'s gate for advantages above 0, and for others.
        revision_ratio: `same_context`: pi(y|c) / pi_old(y|c) under the training context c;
            `policy_prob`: pi(y|c), with a behavior probability of 1 (LUFFY);
            `cross_context`: pi(y|c) / pi_sampler(y|h), true importance sampling, truncated at
            `ratio_cap`.
        revision_shaping: `clip`, that is the surrogate as for attempts, or `shaped` with `gamma`.
        gamma: Shaping constant; if not above 0, revisions get the plain -A rho.
        ratio_cap: Largest ratio under `cross_context`.
        kl_coef: Weight of the KL to the reference policy. At 0 no reference is loaded.
        kl_estimator: `k1`, `k2` or `k3` (`herl.update.loss.kl`).
        kl_in: `loss`, a term with a gradient; or `reward`, which lowers the advantage of each token by the
            KL of the policy before the batch, from this token to the answer's end (REINFORCE++,
            arXiv:2501.03262). It is subtracted after advantages were compared and scaled.
        kl_clamp: Largest KL term of a token, beyond which it has no gradient (10 in the reference code); None
            for no limit. The curve of the KL is not clamped.
        top_entropy_share: Share of the tokens of a step, over all answers and ranks, that get a policy
            gradient: those of the highest entropy right before the step (arXiv:2506.01939, where it is 0.2).
            The others still count in means, and get the gradients of the KL and the entropy bonus. Below 1,
            a step takes another forward pass.
        ref_sync_steps: Optimizer steps after which the reference moves toward the policy; None for one that
            stays what the run began with.
        ref_sync_rate: How far it moves, a in reference + a (policy - reference). 1 every n steps replaces it;
            a small rate every step is an exponential moving average (TR-DPO, arXiv:2404.09656).
        entropy_coef: Weight of the entropy bonus.
        aggregation: See `token_weights`.
        constant_length: Tokens, for the aggregation `constant`.
        mismatch: Correction for a sampler with a separate engine.
    """

    surrogate: Literal["clip", "cispo", "sapo"] = "clip"
    ratio_level: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = 3.0
    tau_positive: float = 1.0
    tau_negative: float = 1.05
    revision_ratio: RevisionRatio = "same_context"
    revision_shaping: Literal["clip", "shaped"] = "clip"
    gamma: float = 1.0
    ratio_cap: float = 2.0
    kl_coef: float = 0.0
    kl_estimator: KL = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    kl_clamp: float | None = None
    top_entropy_share: float = 1.0
    ref_sync_steps: int | None = None
    ref_sync_rate: float = 1.0
    entropy_coef: float = 0.0
    aggregation: Aggregation = "token_mean"
    constant_length: int = 1
    mismatch: Mismatch = field(default_factory=Mismatch)

    def __post_init__(self) -> None:
        check_at_least("loss", 0, clip_low=self.clip_low, clip_high=self.clip_high, kl_coef=self.kl_coef)
        if self.dual_clip is not None and not self.dual_clip > 1.0 + self.clip_high:
            raise ConfigError(
                f"loss.dual_clip: expected more than 1 + clip_high = {1 + self.clip_high:g}, or null, "
                f"got {self.dual_clip}"
            )
        if self.dual_clip is not None and self.surrogate != "clip":
            raise ConfigError(
                f"loss.dual_clip: expected null with surrogate={self.surrogate}, which has no clip to bound, "
                f"got {self.dual_clip}"
            )
        if self.kl_clamp is not None and not self.kl_clamp > 0:
            raise ConfigError(f"loss.kl_clamp: expected a number above 0, or null, got {self.kl_clamp}")
        check_above("loss", 0, tau_positive=self.tau_positive, tau_negative=self.tau_negative)
        check_above("loss", 0, ratio_cap=self.ratio_cap)
        check_at_least("loss", 1, constant_length=self.constant_length)
        if self.kl_estimator == "k1" and self.kl_in == "loss":
            raise ConfigError(
                "loss.kl_estimator: expected k2 or k3 with kl_in=loss, got k1, whose gradient is 0 in "
                "expectation: use kl_in=reward, or another estimator"
            )
        if self.kl_in == "reward" and not self.kl_coef:
            raise ConfigError("loss.kl_coef: expected a number above 0 with kl_in=reward, got 0")
        if not 0 < self.top_entropy_share <= 1:
            raise ConfigError(
                f"loss.top_entropy_share: expected a share in (0, 1], got {self.top_entropy_share}"
            )
        check_at_least("loss", 1, ref_sync_steps=self.ref_sync_steps)
        if not 0 < self.ref_sync_rate <= 1:
            raise ConfigError(f"loss.ref_sync_rate: expected a share in (0, 1], got {self.ref_sync_rate}")
        if self.ref_sync_steps and not self.kl_coef:
            raise ConfigError("loss.kl_coef: expected a number above 0 with ref_sync_steps, got 0")

    @property
    def needs_reference(self) -> bool:
        """Whether the loss has a KL term."""
        return self.kl_coef > 0

    @property
    def needs_ref_logprobs(self) -> bool:
        """Whether the loss has a KL term."""
        return self.kl_coef > 0

    @property
    def needs_on_policy(self) -> bool:
        """Whether there are no importance weights."""
        return self.mismatch.level == "none"

    @property
    def needs_drawn_revisions(self) -> bool:
        """Whether their ratio is to the sampler's policy."""
        return self.revision_ratio == "cross_context"

    def __call__(self, tokens: Tokens) -> tuple[torch.Tensor, Stats]:
        """Returns (loss, stats)."""
        penalty = None
        if tokens.ref_logprobs is not None and self.kl_in == "reward":
            with torch.no_grad():
                penalty = self.kl_coef * to_go(self._kl(tokens.old_logprobs, tokens.ref_logprobs), tokens.row)
            tokens = replace(tokens, advantage=tokens.advantage - penalty)
        rho = self._ratio(tokens)
        per_token, cut = self._surrogate(rho, tokens)
        if self.revision_shaping == "shaped":
            revised = shaped(rho, tokens.advantage, self.gamma)
            per_token = torch.where(tokens.revision, revised, per_token)
            cut = cut & ~tokens.revision
        correction, corrected_cut = self._correction(tokens)
        per_token = per_token * correction
        chosen = None
        if tokens.entropy_floor is not None:
            chosen = tokens.entropy >= tokens.entropy_floor
            per_token = torch.where(chosen, per_token, torch.zeros_like(per_token))
        per_token = per_token - self.entropy_coef * tokens.entropy
        if tokens.ref_logprobs is not None and self.kl_in == "loss":
            per_token = per_token + self.kl_coef * self._kl(tokens.logprobs, tokens.ref_logprobs)
        stats = self._stats(tokens, rho, cut, correction, corrected_cut)
        more = {"kl_penalty": penalty, "top_entropy": None if chosen is None else chosen.float()}
        everywhere = torch.ones_like(tokens.revision)
        means = {name: _over(values, everywhere) for name, values in more.items() if values is not None}
        if means:
            stats = replace(stats, means={**stats.means, **means})
        return (tokens.weight * per_token).sum(), stats

    def _kl(self, logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
        if self.kl_clamp is None:
            return estimate(self.kl_estimator, logprobs, ref_logprobs)
        if self.kl_estimator == "k3":  # exp must stay finite: the clamp's gradient of 0 times infinity is NaN
            ref_logprobs = torch.minimum(ref_logprobs, logprobs.detach() + 40.0)
        return estimate(self.kl_estimator, logprobs, ref_logprobs).clamp(-self.kl_clamp, self.kl_clamp)

    def _ratio(self, tokens: Tokens) -> torch.Tensor:
        behavior = self._behavior(tokens)
        if self.ratio_level == "sequence":
            rho = by_sequence(tokens.logprobs, behavior, tokens.row)
        else:
            rho = ratio(tokens.logprobs, behavior)
        if self.revision_ratio == "cross_context":
            rho = torch.where(tokens.revision, rho.clamp(max=self.ratio_cap), rho)
        return rho

    def _surrogate(self, rho: torch.Tensor, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (loss, cut): the loss of each token, and where the clip range cuts it."""
        if self.surrogate == "sapo":
            gated = sapo(
                rho, tokens.advantage, tau_positive=self.tau_positive, tau_negative=self.tau_negative
            )
            return gated, torch.zeros_like(tokens.revision)
        if self.surrogate == "cispo":
            return cispo(rho, tokens.logprobs, tokens.advantage, low=self.clip_low, high=self.clip_high)
        return ppo_clip(
            rho, tokens.advantage, low=self.clip_low, high=self.clip_high, dual_clip=self.dual_clip
        )

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
