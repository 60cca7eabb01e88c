"""Draws the held-out reward over sampled answers, one line per algorithm, mean and range over its seeds.

python tools/plot_curves.py runs/* --out tools/pictures/embedded.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COLORS = {"herl": "#1b7f5c", "reference": "#c2701c", "grpo": "#5b6abf"}
Curve = tuple[np.ndarray, np.ndarray]


def read(run: Path, tag: str) -> Curve:
    """Returns (sampled answers, values) of a run's curve; of two values at one step the last counts."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    points = {event.step: event.value for event in events.Scalars(tag)}
    return np.array(sorted(points)), np.array([points[step] for step in sorted(points)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--tag", default="heldout/reward")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    curves: dict[str, list[Curve]] = defaultdict(list)
    for run in arguments.runs:
        if not (run / "summary.json").is_file():
            continue
        summary = json.loads((run / "summary.json").read_text())
        curves[summary["algorithm"]].append(read(run, arguments.tag))

    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=150)
    for algorithm, several in sorted(curves.items()):
        last = min(steps[-1] for steps, _ in several)
        grid = np.linspace(0, last, 60)
        values = np.array([np.interp(grid, *curve) for curve in several])
        color = COLORS.get(algorithm)
        label = f"{algorithm} ({len(several)} seed{'s' * (len(several) > 1)})"
        axes.plot(grid, values.mean(0), label=label, color=color, linewidth=2)
        axes.fill_between(grid, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
        final = [float(curve[1][-1]) for curve in several]
        print(f"{algorithm}: last {np.mean(final):.3f}, by seed {[round(v, 3) for v in final]}")
    axes.set_xlabel("sampled answers (attempts and revisions)")
    axes.set_ylabel(arguments.tag.replace("/", " "))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out)


if __name__ == "__main__":
    main()
