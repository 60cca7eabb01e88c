"""How long OpenMP's threads spin while they wait for each other: briefly, then they sleep.

torch brings GNU's OpenMP, whose threads spin for about a millisecond at the end of every parallel loop. On
cores that other processes use too, a thread that spins keeps the one it waits for from running, and a run
takes ten times as long. Threads that never spin (OMP_WAIT_POLICY=PASSIVE) cure that, and cost a small model
time on idle cores; a short spin costs nothing there and loses little. Passes of the embedded model on two
cores:

    idle, median of nine:          as GNU's has it .30 s, 2000 turns .29 s, PASSIVE .34 s
    beside others, median of five: as GNU's has it 5 to 20 times as long as PASSIVE, 2000 turns 1.3 times
"""

from __future__ import annotations

import os

SPINS = "2000"
"""Turns of the loop in which a thread waits before it sleeps: some microseconds."""
CHOSEN_BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly() -> None:
    """Sets this for the process and its children, unless the user has set how threads wait.

    OpenMP reads it when it is loaded: call this before torch is imported.
    """
    if not any(name in os.environ for name in CHOSEN_BY_USER):
        os.environ["GOMP_SPINCOUNT"] = SPINS
