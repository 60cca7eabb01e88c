"""The held-out curve as the coordinates of an SVG picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from herl.report.run_files import Result
from herl.report.story import count, interval

WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 18, 14, 42
"""Margins around the plot; the whole picture has `WIDTH` x `HEIGHT` units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Coordinates in the picture, in its units."""

    line: str
    """The points "x,y x,y ..." of the means; `band` is the outline of the intervals."""
    band: str
    marks: tuple[tuple[float, float, str], ...]
    """(x, y, words) of each validation."""
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def chart(curve: Sequence[tuple[int, Result]]) -> Chart | None:
    """Returns the chart of (answers sampled, held-out reward), or None if there are fewer than two."""
    if len(curve) < 2:
        return None
    x_values = np.array([answers for answers, _ in curve], float)
    rows = np.array([(one.mean, one.low, one.high) for _, one in curve])
    y_ticks = MaxNLocator(5).tick_values(min(0.0, rows.min()), max(rows.max(), min(1.0, rows.max() * 1.2)))
    x_ticks = [tick for tick in MaxNLocator(5).tick_values(x_values[0], x_values[-1]) if tick <= x_values[-1]]
    x_ticks = [tick for tick in x_ticks if tick >= x_values[0]]
    x_span, y_span = max(x_values[-1] - x_values[0], 1.0), y_ticks[-1] - y_ticks[0]

    def x(value: float) -> float:
        return round(float(LEFT + (value - x_values[0]) / x_span * (WIDTH - LEFT - RIGHT)), 1)

    def y(value: float) -> float:
        return round(float(HEIGHT - BOTTOM - (value - y_ticks[0]) / y_span * (HEIGHT - TOP - BOTTOM)), 1)

    places = [x(value) for value in x_values]
    upper = [f"{place},{y(high)}" for place, high in zip(places, rows[:, 2], strict=True)]
    lower = [f"{place},{y(low)}" for place, low in zip(places, rows[:, 1], strict=True)]
    return Chart(
        line=" ".join(f"{place},{y(mean)}" for place, mean in zip(places, rows[:, 0], strict=True)),
        band=" ".join([*upper, *reversed(lower)]),
        marks=tuple(
            (x(answers), y(one.mean), f"after {count(answers)} answers: {interval(one)}")
            for answers, one in curve
        ),
        x_ticks=tuple((x(tick), count(tick)) for tick in x_ticks),
        y_ticks=tuple((y(tick), f"{tick:.4g}") for tick in y_ticks),
    )
