"""Reuses the memory of freed tensors, instead of returning it to the system and requesting it again.

On a CPU, tensors come from glibc's malloc, which returns the free end of its heap to the system whenever it
exceeds 64 MiB, and gets it back page by page, zeroed. In an update, where every layer allocates and frees the
same sizes, that takes up to a fifth of the time (`tools/bench/update.py`).
"""

from __future__ import annotations

import ctypes
import os
import sys

MAX_THRESHOLD = 2**31 - 1
"""Bytes: the largest value that mallopt accepts."""

OLD_MAX_THRESHOLD = 2**25
"""Bytes: the largest M_MMAP_THRESHOLD that older versions of glibc accept."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Constants of malloc.h."""


def keep_freed_memory() -> None:
    """Makes this process keep the memory it frees. Does nothing if the C library is not glibc.

    Also does nothing if the user has set MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_ or a glibc.malloc
    entry in GLIBC_TUNABLES.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys()
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or sys.platform != "linux":
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        # Set both: once one is set, glibc no longer raises the other from its small default.
        mallopt(M_TRIM_THRESHOLD, MAX_THRESHOLD)
        mallopt(M_MMAP_THRESHOLD, MAX_THRESHOLD) or mallopt(M_MMAP_THRESHOLD, OLD_MAX_THRESHOLD)
