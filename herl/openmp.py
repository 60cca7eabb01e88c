"""How threads wait for each other: asleep, so that they leave a core to whoever needs it.

OpenMP's threads spin at the end of every parallel loop. On cores that other processes use too, a thread that
spins keeps the one it waits for from running: beside one busy process on two cores a run took five to sixteen
times as long.
"""

from __future__ import annotations

import os

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""The first is for every OpenMP, the second for GNU's, which torch brings."""


def wait_asleep() -> None:
    """Sets this for the process and its children, unless one of the variables is set already.

    OpenMP reads them when it is loaded: call this before torch is imported.
    """
    if not PASSIVE.keys() & os.environ.keys():
        os.environ.update(PASSIVE)
