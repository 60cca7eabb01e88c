"""Student's t distribution: how far a mean of few values lies from its expectation by chance alone.

Its tail has a closed form for whole degrees of freedom (Abramowitz and Stegun, Handbook of Mathematical
Functions, 26.7.3 and 26.7.4), so no package for statistics is needed.
"""

from __future__ import annotations

import math

import numpy as np


def upper_tail(value: float, degrees: int) -> float:
    """Returns the probability of more than a value.

    Args:
        value: At least 0.
        degrees: Degrees of freedom, at least 1.
    """
    angle = math.atan(value / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    # cos^k x (2 x 4 x ... / 3 x 5 x ...) for odd degrees, (1 x 3 x ... / 2 x 4 x ...) for even ones
    last = np.arange(2 + degrees % 2, degrees - 1, 2, dtype=np.float64)
    series = 1.0 + float(np.cumprod(cosine**2 * (last - 1) / last).sum())
    if degrees % 2 == 0:
        inside = sine * series
    else:
        inside = 2 / math.pi * (angle + (sine * cosine * series if degrees > 1 else 0.0))
    return (1.0 - inside) / 2


def critical_value(tail: float, degrees: int) -> float:
    """Returns the value that is exceeded with a probability.

    Args:
        tail: The probability, between 0 and 0.5.
        degrees: Degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while upper_tail(high, degrees) > tail:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle, degrees) > tail else (low, middle)
    return high
