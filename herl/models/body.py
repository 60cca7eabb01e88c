"""Finds a model's body: the part that its forward pass calls to compute the last hidden states for the head.

The trainer runs body and head separately (`herl/update/logprobs.py`). `base_model` is not always the body:
OPT's forward calls the decoder inside it, and Llama 4's names a part that it does not have. So the forward
pass itself is asked: it is run with candidates that only report that they were called.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary

import torch

from herl.errors import ConfigError
from herl.models.forward_swap import forward_swapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_known: WeakKeyDictionary[torch.nn.Module, torch.nn.Module] = WeakKeyDictionary()


class _Called(Exception):
    """Raised by a candidate in place of its forward pass."""


def body(model: PreTrainedModel) -> torch.nn.Module:
    """Returns the module whose last hidden states the model's head reads.

    Computes nothing, so it works on a meta device, too.

    Raises:
        ConfigError: the forward pass calls none of the candidates.
    """
    if model not in _known:
        _known[model] = _find(model)
    return _known[model]


def _find(model: PreTrainedModel) -> torch.nn.Module:
    named = (model.base_model, getattr(model, "model", None), model.get_decoder())
    candidates = [part for part in named if isinstance(part, torch.nn.Module) and part is not model]
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    called: list[torch.nn.Module] = []

    def report(part: torch.nn.Module) -> Any:
        def forward(*_: Any, **__: Any) -> NoReturn:
            called.append(part)
            raise _Called

        return forward

    reason = f"its forward pass calls none of {sorted({type(part).__name__ for part in candidates})}"
    with ExitStack() as swaps:
        for part in {id(part): part for part in candidates}.values():
            swaps.enter_context(forward_swapped(part, report(part)))
        try:
            type(model).forward(model, input_ids=ids, use_cache=False)
        except _Called:
            return called[0]
        except Exception as error:  # an architecture may fail in any way without its own inputs
            reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    raise ConfigError(f"model.path: {type(model).__name__} cannot be trained on text: {reason}")
