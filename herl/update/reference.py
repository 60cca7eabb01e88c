"""Stage 11: the model that the KL term compares the policy with, and how it follows the policy.

By default it stays what the run began with and is in no checkpoint, since it can be loaded again. A reference
that moves is a part of the module, so that checkpoints have it, as whole weights or as shards.
"""

from __future__ import annotations

import lightning as L
import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from herl.errors import ConfigError
from herl.update.loss.base import Loss

NAME = "reference"
"""Where a module has a reference that moves."""


def check_reference(loss: Loss, *, adapters: bool) -> None:
    """Refuses a reference that cannot move.

    Args:
        loss: The run's loss.
        adapters: Whether the policy has adapters.

    Raises:
        ConfigError: the reference is the policy without its adapters.
    """
    if loss.ref_sync_steps and adapters:
        raise ConfigError(
            "loss.ref_sync_steps: expected null with lora, where the reference is the policy without its "
            f"adapters, got {loss.ref_sync_steps}"
        )


def held_by(module: L.LightningModule, reference: PreTrainedModel, loss: Loss) -> PreTrainedModel:
    """Returns the reference, frozen. One that moves becomes a part of the module."""
    reference.eval().requires_grad_(False)
    if loss.ref_sync_steps:
        # in training mode until it is used: Lightning warns of any part that is not
        module.add_module(NAME, reference.train())
    return reference


@torch.no_grad()
def follow(reference: PreTrainedModel, policy: PreTrainedModel, loss: Loss, steps: int) -> None:
    """Moves the reference toward the policy, if it is time to.

    Args:
        reference: A model of the same class; if sharded, in the same way, so that each rank moves its shards.
        policy: The policy after an optimizer step.
        loss: Says when and how far.
        steps: Optimizer steps taken in the run.
    """
    if not loss.ref_sync_steps or steps % loss.ref_sync_steps:
        return
    for own, new in zip(reference.parameters(), policy.parameters(), strict=True):
        _local(own).lerp_(_local(new).to(own.dtype), loss.ref_sync_rate)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
