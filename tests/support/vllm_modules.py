"""A module around a vLLM sampler."""

import lightning as L
import torch

from herl import Sampling
from herl.callbacks import RefreshSampler
from herl.judge.rule import RuleJudge
from herl.models.pretrained import PretrainedModel
from herl.module import HerlModule
from herl.rollout.stages import RolloutPlan

MODEL = PretrainedModel(path="tiny")


def module_with(sampler, policy, temperature=1.0, scale=0.02):
    """A module after configure_model, its policy changed as an update would have."""
    plan = RolloutPlan(attempt=Sampling(temperature=temperature))
    module = HerlModule(model=MODEL, sampler=sampler, judge=RuleJudge(), rollout=plan)
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    module.policy = policy
    module.counts["optimizer_steps"] = 7
    return module


def probe_of(module):
    recorded = {}
    module.record = recorded.update
    RefreshSampler().refresh(module)
    assert recorded["sampler/weights_proven"] == 1
    return recorded["sampler/probe_error"]
