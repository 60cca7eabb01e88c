"""Limits how long OpenMP threads spin while they wait for each other: briefly, then they sleep.

torch ships GNU OpenMP, whose threads spin for about a millisecond at the end of every parallel loop. On cores
shared with other processes, a spinning thread can keep the very thread it waits for off the core, and a run
takes ten times as long. Threads that never spin (OMP_WAIT_POLICY=PASSIVE) fix that, but slow down a small
model on idle cores. A short spin is as fast as the default there and loses little elsewhere. Forward passes
of the embedded model on two cores:

    idle, median of nine:      GNU's default .30 s, 2000 turns .29 s, PASSIVE .34 s
    shared, median of five:    GNU's default 5 to 20 times as long as PASSIVE, 2000 turns 1.3 times
"""

from __future__ import annotations

import os

SPINS = "2000"
"""How often a waiting thread loops before it sleeps: a few microseconds."""
CHOSEN_BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly() -> None:
    """Shortens the spin for this process and its children, unless the user has set how threads wait.

    OpenMP reads the setting when it is loaded, so call this before importing torch.
    """
    if not any(name in os.environ for name in CHOSEN_BY_USER):
        os.environ["GOMP_SPINCOUNT"] = SPINS
