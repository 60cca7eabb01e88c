"""Runs another function in place of a model's forward pass, with the model's hooks around it.

Computing log-probabilities needs the logits of only some tokens, so `logprobs.py` cannot use the model's
forward pass unchanged. It cannot call the model's parts directly either: the weights of a sharded model
(FSDP) are gathered by hooks, which run only when the model itself is called, as `model(...)`. So the function
replaces `model.forward` for one call, which goes through the model's `__call__`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def forward_swapped(module: torch.nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Within the block, calling the module runs `function` between the module's hooks.

    A forward already set on the instance, such as a compiled one, is restored at the end.
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
