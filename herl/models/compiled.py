"""Compiles a model's layers for the update, and runs them uncompiled elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo import config as dynamo
from torch.fx.experimental import _config as shapes

VARIANTS = 32
"""Graphs of one layer that torch may keep: with and without gradients, in training and evaluation, for
windows, adapters, a reference, and checkpointing. Beyond its limit of 8 it would run layers uncompiled."""

_lock = threading.Lock()
_inside = 0
_stance: Any = None


def compile_blocks(blocks: Iterable[torch.nn.Module], backend: str = "inductor") -> None:
    """Compiles a model's layers, for rows of all lengths. Sets the compiler up for the whole process."""
    shapes.use_duck_shape = False  # lengths that are equal once need not stay so
    dynamo.recompile_limit = max(VARIANTS, dynamo.recompile_limit)
    dynamo.optimize_ddp = False  # it would split layers at the borders of DDP's buckets
    for block in blocks:
        block.compile(dynamic=True, backend=backend)


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether some layer of a model has been compiled."""
    return any(module._compiled_call_impl is not None for module in model.modules())


@contextmanager
def uncompiled(model: torch.nn.Module | None = None) -> Iterator[None]:
    """Within the block nothing runs compiled, in any thread.

    If a model is given of which nothing is compiled, such as a local judge's, the block changes nothing: an
    update in another thread goes on compiled.

    torch's setting is global to the process. If two threads, a policy and a local judge, saved and restored
    it in turns, it could stay on forever. Here the first one in sets it and the last one out resets it.
    """
    global _inside, _stance
    if model is not None and not is_compiled(model):
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            _stance = torch.compiler.set_stance("force_eager")
            _stance.__enter__()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _stance is not None:
                _stance.__exit__(None, None, None)
                _stance = None
