"""Memory that tensors free is used again, instead of being handed back to the system and asked for anew.

On a CPU every large tensor comes from glibc's malloc, which maps fresh pages for it and returns them when it
is freed; the system zeroes them each time. In an update, where the same sizes come and go in every layer,
that is a fifth to a quarter of the time (`tools/bench/update.py`).
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys

logger = logging.getLogger(__name__)

LARGEST = 2**31 - 1
"""Bytes: blocks up to this size, and so much free memory, are kept. More than an int, mallopt cannot take."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""


def keep_freed_memory() -> None:
    """Has this process keep what it frees. Does nothing where the C library is not glibc.

    Thresholds that the user set by MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_ or GLIBC_TUNABLES stay.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys()
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Both: by setting either, glibc stops moving the other one up from its small start.
    if mallopt and not all(mallopt(option, LARGEST) for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD)):
        logger.warning("glibc did not take the thresholds of malloc: updates on the CPU will be slower")
