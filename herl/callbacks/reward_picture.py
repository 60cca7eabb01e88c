"""The picture at the top of TensorBoard: rewards of held-out prompts, attempts and revisions over the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from herl.display.picture import literal_text

SERIES = {
    "heldout": ("held-out", "tab:blue", "o"),
    "train": ("attempts", "tab:gray", "."),
    "revision": ("revisions", "tab:orange", "^"),
}
"""Name in the legend, color and marker of each curve."""
_WINDOWS = 12
"""The lines of attempts and revisions average over about this share of the run."""


@literal_text()
def reward_picture(history: Mapping[str, Sequence[tuple[int, float, int]]], x_label: str) -> np.ndarray:
    """Returns the picture, [height, width, 3], 8 bits per channel.

    A point is one batch, and its area is the number of answers in it. Lines average over neighbors weighted
    by those numbers, so that a batch with two revisions does not look like a collapse.

    Args:
        history: (x, mean reward, number of answers) in order, for each of `SERIES`.
        x_label: Label of the x axis.
    """
    figure = Figure(figsize=(7.2, 4.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, (words, color, marker) in SERIES.items():
        if not history.get(name):
            continue
        x, means, counts = np.array(history[name], float).T
        sizes = 30.0 if name == "heldout" else 4 + 40 * counts / counts.max()
        axes.scatter(x, means, s=sizes, color=color, marker=marker, alpha=0.9 if name == "heldout" else 0.35)
        line = means if name == "heldout" else smooth(means, counts, max(1, len(x) // _WINDOWS))
        axes.plot(x, line, color=color, linewidth=2, label=f"{words}: {line[-1]:.2f}")
    axes.set_xlabel(x_label)
    axes.set_title("Mean reward; the area of a point is the number of answers")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def smooth(means: np.ndarray, counts: np.ndarray, reach: int) -> np.ndarray:
    """Returns the mean over up to `reach` neighbors on each side, weighted by their counts, [points]."""
    spans = [slice(max(0, place - reach), place + reach + 1) for place in range(len(means))]
    return np.array([np.average(means[span], weights=counts[span]) for span in spans])
