"""Runs another function in place of a model's forward pass, with the model's hooks around it.

Computing log-probabilities needs the logits of some tokens only, so `logprobs.py` cannot use the model's own
forward pass as it is. It cannot call the model's parts directly either: the weights of a sharded model (FSDP)
are gathered by hooks, which run only when the model itself is called, as `model(...)`. So the function takes
the place of `model.forward` for the length of one call, and the call goes through the model's own `__call__`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def forward_swapped(module: torch.nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Within the block, a call of the module runs `function` between the module's hooks.

    A forward that the instance already carries, such as a compiled one, is put back at the end.
    """
    own = vars(module).get("forward")
    module.forward = function
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
