"""Runs a model's layers uncompiled, although they have been compiled for the update."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_stance: Any = None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within the block nothing runs compiled, in any thread.

    torch's setting is global to the process. If two threads, a policy and a local judge, saved and restored
    it in turns, it could stay on forever. Here the first one in sets it and the last one out resets it.
    """
    global _inside, _stance
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
