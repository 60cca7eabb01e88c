"""Replay that tensors free is used again, instead of being handed back to the system and asked for anew.

On a CPU tensors come from glibc's malloc, which returns the free end of its heap to the system whenever that
is more than 64 MiB, and gets it back page by page, zeroed. In an update, where the same sizes come and go in
every layer, that is up to a fifth of the time (`tools/bench/update.py`).
"""

from __future__ import annotations

import ctypes
import os
import sys

MOST = 2**31 - 1
"""Bytes: the most that mallopt can be told."""

MAPPED = 2**25
"""Bytes, the most that older versions of glibc take as the size from which on a block is mapped by itself."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""


def keep_freed_memory() -> None:
    """Has this process keep what it frees. Does nothing where the C library is not glibc.

    Whoever set MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_ or something of glibc.malloc in GLIBC_TUNABLES
    keeps that, and nothing is set here.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys()
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or sys.platform != "linux":
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        # Both: once one is set, glibc no longer moves the other up from its small start.
        mallopt(M_TRIM_THRESHOLD, MOST)
        mallopt(M_MMAP_THRESHOLD, MOST) or mallopt(M_MMAP_THRESHOLD, MAPPED)
