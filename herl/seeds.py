"""Randomness that does not depend on the order of work.

Every random choice of a run is drawn from a hash of its coordinates: (seed, epoch, batch, task, sample).
The number of processes, the batch size or a resume do not change it.
"""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Returns a seed in [0, 2**63), a BLAKE2b hash of the parts. Their order and types matter."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
