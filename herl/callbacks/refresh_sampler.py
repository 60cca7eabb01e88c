"""Brings the policy's weights to the sampler, and checks that they arrived."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import lightning as L
import torch

from herl.callbacks.base import HerlCallback
from herl.distributed import gather, together
from herl.errors import ConfigError, SamplerError
from herl.module import HerlModule
from herl.rollout.render import render
from herl.sampler import Sampler
from herl.sampler.receipts import listed
from herl.seeds import derive_seed
from herl.types import SampleRequest

PROBE = "Describe how rain forms, and name two animals that like it."
EXACT_LIMIT, ROUNDED_LIMIT = 1e-3, 0.25
"""Default of probe_limit in nats: where engine and trainer compute in float32, and elsewhere."""
HOTTER = 1.1
"""Factor of the temperature that shows how log-probs move with it."""
TEMPERATURE_LIMIT, SURE = 0.05, 5.0
"""The sampler's temperature may differ from the trainer's by this share, or by so many standard errors."""


class RefreshSampler(HerlCallback):
    """Refreshes the sampler at the start of each epoch, before each validation, and in between.

    Every refresh is checked in two ways, unless the sampler reads the live policy:

    - The sampler names the tensors that its engine does not hold (`Sampler.lost_weights`), by checksums that
      are exact in any precision: a head or a layer that is one step behind, experts that were not taken.
    - The probe: the sampler answers a fixed request, and its log-probs of its own answers must be the
      trainer's. In float32 that catches the same, and in any precision another temperature, another
      architecture, and weights that the engine has and misreads. In bfloat16 a stale layer may hide in
      rounding: a sampler that cannot tell what its engine holds has no more than this.

    A resumed run refreshes at once: unless it does before every batch, its next answers are of a newer policy
    than they would have been.

    Args:
        every_n_steps: Refresh before a batch once that many optimiser steps were taken since the last
            time. 1 samples every batch from the newest policy; None refreshes once an epoch.
        probe_limit: Largest difference of log-probs in the probe, in nats, as the root of the mean square
            over its tokens. None for 1e-3 where engine and trainer compute in float32, and 0.25 where either
            rounds more.
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
        if (every_n_steps is not None and every_n_steps < 1) or (
            probe_limit is not None and probe_limit <= 0
        ):
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

    @property
    def refreshes_every_batch(self) -> bool:
        """Whether new weights come before each batch that follows an update: the sampler may drop its own."""
        return self.every_n_steps == 1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forgets the version: a checkpoint may have brought other weights under the same number."""
        self.version = None

    def on_epoch_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        self.refresh(module)

    def on_heldout_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        self.refresh(module)

    def on_batch_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        stale = module.counts["optimizer_steps"] - (self.version or 0)
        due = self.every_n_steps is not None and stale >= self.every_n_steps
        sampler, resumed = module.stages.sampler, self.version is None  # within an epoch
        if resumed or sampler.live or due or not sampler.has_weights:
            self.refresh(module)

    def refresh(self, module: HerlModule) -> None:
        """Streams the weights into the sampler and checks them, unless it has this version already.

        Raises:
            SamplerError: weights did not arrive, the probe failed, or the engine did.
        """
        version, sampler = module.counts["optimizer_steps"], module.stages.sampler
        if version == self.version and sampler.has_weights:
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
        self._check_probe(found, self.probe_limit or (EXACT_LIMIT if _is_exact(module) else ROUNDED_LIMIT))
        spent = {name: clock.seconds[name] - before.get(name, 0.0) for name in ("refresh", "probe")}
        module.record(
            {f"sampler/{name}_seconds": seconds for name, seconds in spent.items()}
            | {"sampler/weights_proven": float(proven)}
            | {"sampler/probe_error": found.error, "sampler/probe_temperature": found.temperature}
        )

    def _check_weights(self, sampler: Sampler) -> bool:
        """Raises if weights did not arrive; returns whether the sampler can tell."""
        told = gather(sampler.lost_weights())
        lost = list(dict.fromkeys(name for names in told for name in names or ()))
        if lost:
            raise SamplerError(
                f"the sampler does not hold the weights of policy version {self.version} after the refresh: "
                f"it lacks {listed(lost)}. Either its engine does not load these names, or it does not "
                "support this model"
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
        hotter = None
        # Not in Lightning's inference mode: buffers that FSDP makes there could not be used in training.
        with torch.inference_mode(False), torch.no_grad(), numerics():
            scorer = module.scorer()  # which tries rows, in the numerics that will train them
            ours = scorer.own_logprobs(rollouts)
            if not _is_exact(module):  # else 10 % exceed the limit anyway
                hotter = replace(scorer, temperature=scorer.temperature * HOTTER).own_logprobs(rollouts)
        theirs = torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs])
        found = compare(ours, theirs, hotter)
        return max(gather(found), key=lambda one: math.inf if math.isnan(one.error) else one.error)

    def _check_probe(self, found: Probe, limit: float) -> None:
        said = f"the probe failed after the refresh to policy version {self.version}: the "
        if not found.error <= limit:
            raise SamplerError(
                f"{said}log-probs of sampler and trainer differ by {found.error:.3g} nats (root of the mean "
                f"square over {found.tokens} tokens); callbacks.refresh_sampler.probe_limit allows "
                f"{limit:g}. Either weights did not arrive, or engine and trainer differ in temperature, "
                "architecture or precision"
            )
        if abs(found.temperature - 1.0) > max(TEMPERATURE_LIMIT, SURE * found.uncertainty):
            raise SamplerError(
                f"{said}sampler's temperature seems to be {found.temperature:.2f} times the trainer's (+- "
                f"{found.uncertainty:.2f}, from {found.tokens} tokens), expected the same"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How a sampler's log-probs of its answers differ from the trainer's."""

    error: float
    """Root of the mean square, in nats."""
    temperature: float
    """The sampler's over the trainer's; 1 where it was not estimated."""
    uncertainty: float
    """Standard error of `temperature`."""
    tokens: int


def compare(ours: torch.Tensor, theirs: torch.Tensor, hotter: torch.Tensor | None) -> Probe:
    """Compares the trainer's log-probs with the sampler's.

    The trainer's own log-probs at a temperature 10 % higher show what such a difference looks like, token by
    token. How much of it is in the deviation is a least-squares fit, in which rounding averages out: a few
    per cent are seen where each token deviates by more for other reasons.

    Args:
        ours: The trainer's, [num_tokens].
        theirs: The sampler's, [num_tokens].
        hotter: The trainer's at `HOTTER` times the temperature, [num_tokens]; None to estimate no
            temperature.
    """
    deviation = theirs.double() - ours.double()
    temperature, uncertainty = 1.0, 0.0
    if hotter is not None:
        direction = hotter.double() - ours.double()
        power = float(direction.square().sum())
        share = float(deviation @ direction) / power if power else 0.0
        rest = float((deviation - share * direction).square().mean())
        temperature = 1.0 + share * (HOTTER - 1.0)
        uncertainty = math.sqrt(rest / power) * (HOTTER - 1.0) if power else math.inf
    error = float(deviation.square().mean().sqrt())
    return Probe(error=error, temperature=temperature, uncertainty=uncertainty, tokens=len(ours))


def _is_exact(module: HerlModule) -> bool:
    """Whether engine and trainer compute in float32, and not in TF32."""
    policy, engine = module.policy, module.stages.sampler.weights_dtype
    assert policy is not None
    return (
        module.trainer.precision == "32-true"
        and {policy.dtype, engine or policy.dtype} == {torch.float32}
        and (module.device.type == "cpu" or torch.get_float32_matmul_precision() == "highest")
    )


def _load(sampler: Sampler, stream: Iterator[tuple[str, torch.Tensor]], version: int) -> None:
    try:
        sampler.load_weights(stream, version)
    except Exception:
        for _ in stream:  # the other ranks are gathering shards: take part to the end, then fail
            pass
        raise
