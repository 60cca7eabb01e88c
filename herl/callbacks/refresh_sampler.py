"""Sends the policy's weights to the sampler and checks that they arrived."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import lightning as L
import torch

from herl.callbacks.base import HerlCallback
from herl.distributed import gather, together
from herl.errors import ConfigError, SamplerError
from herl.models.chat_template import render
from herl.models.precision import rms
from herl.module import HerlModule
from herl.sampler import Sampler
from herl.sampler.receipts import listed
from herl.seeds import derive_seed
from herl.types import SampleRequest, Sampling

PROBE = "Describe how rain forms, and name two animals that like it."
EXACT_LIMIT, ROUNDED_LIMIT = 1e-3, 0.25
"""Defaults of probe_limit, in nats: if engine and trainer both compute in float32, and otherwise."""
HOTTER = 1.1
"""Temperature factor used to see how log-probs depend on temperature."""
TEMPERATURE_LIMIT, SURE = 0.05, 5.0
"""Tolerance for the sampler's temperature: a relative difference, or a number of standard errors."""


class RefreshSampler(HerlCallback):
    """Refreshes the sampler at the start of each epoch, before each validation, and in between.

    Unless the sampler reads the live policy, every refresh is checked in two ways:

    - The sampler names the tensors that its engine does not hold (`Sampler.lost_weights`). The checksums are
      exact in any precision: they catch a head or layer that is one step behind, or experts left out.
    - The probe: the sampler answers a fixed request, and its log-probs of its answers must match the
      trainer's. In float32 this catches the same faults, and in any precision it also catches a different
      temperature or architecture, or weights that the engine misreads. In bfloat16 a stale layer may hide in
      rounding; a sampler that cannot inspect its engine has only this check.

    A resumed run refreshes at once. Unless refreshes happen before every batch, its next answers come from a
    newer policy than in an uninterrupted run.

    Args:
        every_n_steps: Refresh before a batch once this many optimizer steps have been taken since the last
            refresh. 1 samples every batch from the newest policy; None refreshes once per epoch. Other than
            1, it needs a loss with importance weights (`loss.mismatch.level`).
        probe_limit: Largest root-mean-square difference of log-probs over the probe's tokens, in nats. None
            means 1e-3 if engine and trainer both compute in float32, and 0.25 otherwise.
        probe_answers: Minimum number of answers to the probe; it grows with the number of engines.
        probe_tokens: Maximum number of tokens in each.
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
        """Whether new weights come before each batch after an update, so that a sampler may drop its copy."""
        return self.every_n_steps == 1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forgets the version: a checkpoint may have loaded other weights under the same number."""
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
        """Streams the weights into the sampler and checks them, unless it already has this version.

        Raises:
            SamplerError: weights did not arrive, or the probe or the engine failed.
        """
        version, sampler = module.counts["optimizer_steps"], module.stages.sampler
        if version == self.version and sampler.has_weights:
            return
        clock, before = module.clock, dict(module.clock.seconds)
        if not sampler.live:
            with clock.time("probe"):
                self._try_rows(module)
        with clock.time("refresh"):
            # No rank may sample before all engines have the weights.
            together(lambda: _load(sampler, module.named_weights(), version))
        self.version = version
        if sampler.live:
            return
        with clock.time("probe"):
            proven = self._check_weights(sampler)
            probe = self._probe(module)
        self._check_probe(probe, self.probe_limit or (EXACT_LIMIT if _is_exact(module) else ROUNDED_LIMIT))
        spent = {name: clock.seconds[name] - before.get(name, 0.0) for name in ("refresh", "probe")}
        module.record(
            {f"sampler/{name}_seconds": seconds for name, seconds in spent.items()}
            | {"sampler/weights_proven": float(proven)}
            | {"sampler/probe_error": probe.error, "sampler/probe_temperature": probe.temperature}
        )

    def _check_weights(self, sampler: Sampler) -> bool:
        """Raises if weights did not arrive; returns whether the sampler can tell."""
        reports = gather(sampler.lost_weights())
        lost = list(dict.fromkeys(name for names in reports for name in names or ()))
        if lost:
            raise SamplerError(
                f"the sampler does not hold the weights of policy version {self.version} after the refresh: "
                f"it lacks {listed(lost)}. Its engine either does not load these names or does not "
                "support this model"
            )
        return None not in reports

    def _try_rows(self, module: HerlModule) -> None:
        """Lets the updater choose its packing, in the memory that a sleeping engine takes when it wakes."""
        with _as_in_training(module):
            module.scorer()

    def _probe(self, module: HerlModule) -> Probe:
        """Compares the sampler's log-probs with the trainer's; returns the result of the worst rank."""
        stages = module.stages
        request = SampleRequest(
            task_id="probe",
            group_id="probe",
            prompt_ids=render(stages.tokenizer, [{"role": "user", "content": PROBE}]),
            n=max(self.probe_answers, 4 * stages.sampler.engines),
            sampling=Sampling(temperature=stages.plan.attempt.temperature, max_new_tokens=self.probe_tokens),
            seed=derive_seed(module.seed, "probe"),
        )
        # Every rank probes its own engine, with the numerics of a training step.
        with module.trainer.precision_plugin.forward_context():
            rollouts = together(lambda: list(stages.sampler.generate([request])))
        assert module.policy is not None
        module.policy.eval()
        hotter = None
        with _as_in_training(module):
            scorer = module.scorer()
            ours = scorer.own_logprobs(rollouts)
            if not _is_exact(module):  # in exact numerics, 10 % breaks the limit anyway
                hotter = replace(scorer, temperature=scorer.temperature * HOTTER).own_logprobs(rollouts)
        theirs = torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs])
        probes = gather(compare(ours, theirs, hotter))
        return max(probes, key=lambda probe: math.inf if math.isnan(probe.error) else probe.error)

    def _check_probe(self, probe: Probe, limit: float) -> None:
        prefix = f"the probe failed after the refresh to policy version {self.version}: the "
        if not probe.error <= limit:
            raise SamplerError(
                f"{prefix}log-probs of sampler and trainer differ by {probe.error:.3g} nats (root mean "
                f"square over {probe.tokens} tokens); callbacks.refresh_sampler.probe_limit allows "
                f"{limit:g}. Either weights did not arrive, or engine and trainer differ in temperature, "
                "architecture or precision"
            )
        if abs(probe.temperature - 1.0) > max(TEMPERATURE_LIMIT, SURE * probe.uncertainty):
            raise SamplerError(
                f"{prefix}sampler's temperature seems to be {probe.temperature:.2f} times the trainer's (+- "
                f"{probe.uncertainty:.2f}, from {probe.tokens} tokens), expected the same"
            )


@contextmanager
def _as_in_training(module: HerlModule) -> Iterator[None]:
    """The numerics of a training step, without gradients. Leaves Lightning's inference mode: buffers that
    FSDP creates in it could not be used in training."""
    with torch.inference_mode(False), torch.no_grad(), module.trainer.precision_plugin.forward_context():
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How a sampler's log-probs of its answers differ from the trainer's."""

    error: float
    """Root mean square of the differences, in nats."""
    temperature: float
    """The sampler's temperature over the trainer's; 1 if it was not estimated."""
    uncertainty: float
    """Standard error of `temperature`."""
    tokens: int


def compare(ours: torch.Tensor, theirs: torch.Tensor, hotter: torch.Tensor | None) -> Probe:
    """Compares the trainer's log-probs with the sampler's.

    The trainer's log-probs at a temperature 10 % higher show, token by token, the effect of such a change. A
    least-squares fit finds its share in the deviation. Rounding averages out in the fit, so it detects a few
    percent even if single tokens deviate more for other reasons.

    Args:
        ours: The trainer's log-probs, [num_tokens].
        theirs: The sampler's log-probs, [num_tokens].
        hotter: The trainer's log-probs at `HOTTER` times the temperature, [num_tokens]; None to skip the
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
    error = rms(deviation)
    return Probe(error=error, temperature=temperature, uncertainty=uncertainty, tokens=len(ours))


def _is_exact(module: HerlModule) -> bool:
    """Whether engine and trainer both compute in float32 rather than TF32."""
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
        for _ in stream:  # the other ranks are gathering shards: participate to the end, then fail
            pass
        raise
