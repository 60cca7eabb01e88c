"""Brings the policy's weights to the sampler, and checks that they arrived."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import lightning as L
import torch

from herl.distributed import gather, together
from herl.errors import ConfigError, SamplerError
from herl.experience import render
from herl.module import HerlModule
from herl.sampler import Sampler
from herl.seeds import derive_seed
from herl.types import SampleRequest

PROBE = "Describe how rain forms, and name two animals that like it."


class RefreshSampler(L.Callback):
    """Refreshes the sampler at the start of each epoch, before each validation, and in between.

    After a refresh it probes: the sampler answers a fixed request, and its log-probs of its own answers
    must be the trainer's. That catches weights that did not arrive, another temperature, another model. A
    sampler that reads the live policy has nothing to copy and nothing to probe. A resumed run refreshes at
    once: unless it does before every batch, its next answers are of a newer policy than they would have been.

    Args:
        every_n_steps: Refresh before a batch once that many optimiser steps were taken since the last
            time. 1 samples every batch from the newest policy; None refreshes once an epoch.
        probe_limit: Largest difference of a token's log-prob, in nats. Engines in bfloat16 need about 0.3.
        probe_answers: Answers to the probe; more where there are more engines to reach.
        probe_tokens: Tokens of each, at most.
    """

    def __init__(
        self,
        every_n_steps: int | None = 1,
        probe_limit: float = 1e-3,
        probe_answers: int = 2,
        probe_tokens: int = 4,
    ) -> None:
        if (every_n_steps is not None and every_n_steps < 1) or probe_limit <= 0:
            raise ConfigError(
                "callbacks.refresh_sampler: expected every_n_steps of at least 1, or null, and probe_limit "
                f"above 0, got {every_n_steps} and {probe_limit}"
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
        sampler = pl_module.stages.sampler
        if (
            self.version is None or sampler.live or due or not sampler.has_weights
        ):  # None: resumed in an epoch
            self.refresh(pl_module)

    def refresh(self, module: L.LightningModule) -> None:
        """Streams the weights into the sampler and probes, unless it has this version already.

        Raises:
            SamplerError: the probe failed, or the engine did.
        """
        assert isinstance(module, HerlModule)
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
            error = self._probe(module)
        spent = {name: clock.seconds[name] - before.get(name, 0.0) for name in ("refresh", "probe")}
        module.record(
            {f"sampler/{name}_seconds": seconds for name, seconds in spent.items()}
            | {"sampler/probe_error": error}
        )

    def _probe(self, module: HerlModule) -> float:
        """Returns the largest difference between the sampler's and the trainer's log-probs, in nats."""
        stages = module.stages
        request = SampleRequest(
            task_id="probe",
            group_id="probe",
            prompt_ids=render(stages.tokenizer, [{"role": "user", "content": PROBE}]),
            n=max(self.probe_answers, stages.sampler.engines),
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
        ids = [token for rollout in rollouts for token in rollout.token_ids]
        difference = (ours - theirs).abs()
        place = int(difference.argmax())  # a NaN counts as the largest
        error, sampler_logprob, trainer_logprob, token = max(
            gather(
                (
                    float(difference[place]),
                    float(theirs[place]),
                    float(ours[place]),
                    stages.tokenizer.decode([ids[place]]),
                )
            ),
            key=lambda found: math.inf if math.isnan(found[0]) else found[0],
        )
        if not error <= self.probe_limit:
            raise SamplerError(
                f"the probe failed after the refresh to policy version {self.version}: the largest deviation "
                f"is {error:.3g} nats at the token {token!r}, to which the sampler gives the log-prob "
                f"{sampler_logprob:.4f} and the trainer {trainer_logprob:.4f}; "
                f"callbacks.refresh_sampler.probe_limit allows {self.probe_limit:g}. "
                "Engines in bfloat16 need about 0.3; more means that weights did not "
                "arrive, or that engine and trainer differ in temperature or architecture"
            )
        return error


def _load(sampler: Sampler, stream: Iterator[tuple[str, torch.Tensor]], version: int) -> None:
    try:
        sampler.load_weights(stream, version)
    except Exception:
        for _ in stream:  # the other ranks are gathering shards: take part to the end, then fail
            pass
        raise
