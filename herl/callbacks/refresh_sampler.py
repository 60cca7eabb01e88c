"""Brings the policy's weights to the sampler, and checks that they arrived."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch

from herl.distributed import gather, together
from herl.errors import ConfigError, SamplerError
from herl.experience import render
from herl.module import HerlModule
from herl.sampler import Sampler
from herl.sampler.receipts import listed
from herl.seeds import derive_seed
from herl.types import SampleRequest

PROBE = "Describe how rain forms, and name two animals that like it."
EXACT_LIMIT, ROUNDED_LIMIT = 1e-3, 0.25
"""Default of probe_limit in nats, where engine and trainer compute in float32, and where one of them does not."""
TEMPERATURE_LIMIT = 0.04
"""Largest relative difference between the sampler's temperature and the trainer's."""
SURE = 5.0
"""Standard errors by which a temperature must differ to count."""


class RefreshSampler(L.Callback):
    """Refreshes the sampler at the start of each epoch, before each validation, and in between.

    Every refresh is checked in two ways, unless the sampler reads the live policy:

    - The sampler names the tensors that its engine does not hold (`Sampler.lost_weights`), by checksums that are exact
      in any precision: a head or a layer that is one step behind, experts that were not taken.
    - The probe: the sampler answers a fixed request, and its log-probs of its own answers must be the trainer's. In
      float32 that catches the same, and in any precision another temperature, another architecture, and weights that
      the engine has and misreads. In bfloat16 a stale layer may hide in rounding: a sampler that cannot tell what
      its engine holds has no more than this.

    A resumed run refreshes at once: unless it does before every batch, its next answers are of a newer policy than
    they would have been.

    Args:
        every_n_steps: Refresh before a batch once that many optimiser steps were taken since the last
            time. 1 samples every batch from the newest policy; None refreshes once an epoch.
        probe_limit: Largest difference of log-probs in the probe, in nats, as the root of the mean square over its
            tokens. None for 1e-3 where engine and trainer compute in float32, and 0.25 where either rounds more.
        probe_answers: Answers to the probe; more where there are more engines to reach.
        probe_tokens: Tokens of each, at most.
    """

    def __init__(
        self,
        every_n_steps: int | None = 1,
        probe_limit: float | None = None,
        probe_answers: int = 16,
        probe_tokens: int = 4,
    ) -> None:
        if (every_n_steps is not None and every_n_steps < 1) or (probe_limit is not None and probe_limit <= 0):
            raise ConfigError(
                "callbacks.refresh_sampler: expected every_n_steps of at least 1, or null, and probe_limit "
                f"above 0, or null, got {every_n_steps} and {probe_limit}"
            )
        if probe_answers < 1 or probe_tokens < 1:
            raise ConfigError(
                "callbacks.refresh_sampler: expected probe_answers and probe_tokens of at least 1, "
                f"got {probe_answers} and {probe_tokens}"
            )
        self.every_n_steps = every_n_steps
        self.probe_limit = probe_limit
        self.probe_answers = probe_answers
        self.probe_tokens = probe_tokens
        self.version: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forgets the version: a checkpoint may have brought other weights under the same number."""
        self.version = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.refresh(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.refresh(pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, HerlModule)
        stale = pl_module.counts["optimizer_steps"] - (self.version or 0)
        due = self.every_n_steps is not None and stale >= self.every_n_steps
        if self.version is None or pl_module.stages.sampler.live or due:  # None: resumed within an epoch
            self.refresh(pl_module)

    def refresh(self, module: L.LightningModule) -> None:
        """Streams the weights into the sampler and checks that they arrived, unless it has this version already.

        Raises:
            SamplerError: weights did not arrive, the probe failed, or the engine did.
        """
        assert isinstance(module, HerlModule)
        version, sampler = module.counts["optimizer_steps"], module.stages.sampler
        if version == self.version:
            return
        clock, before = module.clock, dict(module.clock.seconds)
        with clock.time("refresh"):
            # No rank samples before all engines have the weights.
            together(lambda: _load(sampler, module.named_weights(), version))
        self.version = version
        if sampler.live:
            return
        with clock.time("probe"):
            proven = self._check_weights(sampler)
            found = self._probe(module)
        self._check_probe(found, self._limit(module))
        spent = {name: clock.seconds[name] - before.get(name, 0.0) for name in ("refresh", "probe")}
        module.record(
            {f"sampler/{name}_seconds": seconds for name, seconds in spent.items()}
            | {"sampler/weights_proven": float(proven)}
            | {"sampler/probe_error": found.error, "sampler/probe_temperature": 1.0 + found.hotter}
        )

    def _check_weights(self, sampler: Sampler) -> bool:
        """Raises if weights did not arrive; returns whether the sampler can tell."""
        told = gather(sampler.lost_weights())
        lost = list(dict.fromkeys(name for names in told for name in names or ()))
        if lost:
            raise SamplerError(
                f"the sampler does not hold the weights of policy version {self.version} after the refresh: it lacks "
                f"{listed(lost)}. Either its engine does not load these names, or it does not support this model"
            )
        return None not in told

    def _probe(self, module: HerlModule) -> Probe:
        """Returns how the sampler's log-probs differ from the trainer's, on the rank where they do most."""
        stages = module.stages
        request = SampleRequest(
            task_id="probe",
            group_id="probe",
            prompt_ids=render(stages.tokenizer, [{"role": "user", "content": PROBE}]),
            n=max(self.probe_answers, 4 * stages.sampler.engines),
            sampling=replace(stages.plan.attempt, top_p=1.0, max_new_tokens=self.probe_tokens),
            seed=derive_seed(module.seed, "probe"),
        )
        # Every rank probes its own engine, under the numerics of a training step.
        numerics = module.trainer.precision_plugin.forward_context
        with numerics():
            rollouts = together(lambda: list(stages.sampler.generate([request])))
        assert module.policy is not None
        module.policy.eval()
        # Not in Lightning's inference mode: buffers that FSDP makes there could not be used in training.
        with torch.inference_mode(False), torch.no_grad(), numerics():
            ours = module.scorer().own_logprobs(rollouts)
        theirs = torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs])
        return max(gather(compare(ours, theirs)), key=lambda found: math.inf if math.isnan(found.error) else found.error)

    def _limit(self, module: HerlModule) -> float:
        """Largest root mean square in nats: what the settings say, or what rounding allows."""
        if self.probe_limit is not None:
            return self.probe_limit
        policy, engine = module.policy, module.stages.sampler.weights_dtype
        assert policy is not None
        exact = (
            module.trainer.precision == "32-true"
            and {policy.dtype, engine or policy.dtype} == {torch.float32}
            and (module.device.type == "cpu" or torch.get_float32_matmul_precision() == "highest")
        )
        return EXACT_LIMIT if exact else ROUNDED_LIMIT

    def _check_probe(self, found: Probe, limit: float) -> None:
        said = f"the probe failed after the refresh to policy version {self.version}: the "
        if not found.error <= limit:
            raise SamplerError(
                f"{said}log-probs of sampler and trainer differ by {found.error:.3g} nats (root of the mean square over "
                f"{found.tokens} tokens); callbacks.refresh_sampler.probe_limit allows {limit:g}. Either weights did "
                "not arrive, or engine and trainer differ in temperature, architecture or precision"
            )
        if abs(found.hotter) > max(TEMPERATURE_LIMIT, SURE * found.uncertainty):
            raise SamplerError(
                f"{said}sampler's temperature seems to be {1 + found.hotter:.2f} times the trainer's (+- "
                f"{found.uncertainty:.2f}, from {found.tokens} tokens), expected the same"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How a sampler's log-probs of its answers differ from the trainer's."""

    error: float
    """Root of the mean square, in nats."""
    hotter: float
    """The sampler's temperature over the trainer's, less 1."""
    uncertainty: float
    """Standard error of `hotter`."""
    tokens: int


def compare(ours: torch.Tensor, theirs: torch.Tensor) -> Probe:
    """Compares the trainer's log-probs with the sampler's, [num_tokens] each.

    Log-probs at a higher temperature deviate in proportion to themselves: log p / (1 + x), up to normalization. So x
    is the slope of the deviation over the trainer's log-probs, and rounding, which has none, averages out.
    """
    ours, theirs = ours.double(), theirs.double()
    deviation, centered = theirs - ours, ours - ours.mean()
    spread = float(centered.square().sum())
    slope = float(deviation @ centered) / spread if spread else 0.0
    rest = deviation - deviation.mean() - slope * centered
    return Probe(
        error=float(deviation.square().mean().sqrt()),
        hotter=1 / (1 + slope) - 1 if slope > -1 else math.inf,
        uncertainty=math.sqrt(float(rest.square().mean()) / spread) if spread else math.inf,
        tokens=len(ours),
    )


def _load(sampler: Sampler, stream: Iterator[tuple[str, torch.Tensor]], version: int) -> None:
    try:
        sampler.load_weights(stream, version)
    except Exception:
        for _ in stream:  # the other ranks are gathering shards: take part to the end, then fail
            pass
        raise
