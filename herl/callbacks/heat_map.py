"""A picture of how each criterion fared over the run: one row per criterion, one column per point in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from herl.display.picture import label, literal_text

MAX_COLUMNS = 60


@literal_text()
def heat_map(history: Sequence[tuple[int, Mapping[str, float]]], title: str, x_label: str) -> np.ndarray:
    """Returns the picture, [height, width, 3], 8 bits per channel. Rows with the best final share come first.

    Args:
        history: (x, share of answers that fulfill each criterion), in order. Beyond 60 entries, neighbors
            share a column.
    """
    criteria = sorted({name for _, shares in history for name in shares})
    parts = np.array_split(np.arange(len(history)), min(MAX_COLUMNS, len(history)))
    shares = np.full((len(criteria), len(parts)), np.nan)
    for column, part in enumerate(parts):
        for row, name in enumerate(criteria):
            values = [history[i][1][name] for i in part if name in history[i][1]]
            if values:
                shares[row, column] = sum(values) / len(values)
    last = [next((v for v in line[::-1] if not np.isnan(v)), np.nan) for line in shares]
    order = sorted(range(len(criteria)), key=lambda row: -last[row])

    figure = Figure(figsize=(6.6, 1.3 + 0.24 * len(criteria)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares[order], vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(criteria)), [label(criteria[row], 40) for row in order])
    ticks = sorted({0, len(parts) // 3, 2 * len(parts) // 3, len(parts) - 1})
    axes.set_xticks(ticks, [f"{history[parts[tick][-1]][0]:,}" for tick in ticks])
    axes.set_xlabel(x_label)
    axes.set_title(title)
    ends = axes.secondary_yaxis("right")
    ends.set_yticks(range(len(criteria)), [f"{last[row]:.2f}" for row in order])
    ends.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="share of answers", pad=0.01)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
