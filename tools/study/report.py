"""What a study found: curves over sampled answers, means with intervals over seeds, a table, a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COLORS = ("#1b7f5c", "#5b6abf", "#c2701c", "#a3324b", "#7a6a2f", "#3a8fb7", "#6b4c8a", "#777777")
RESAMPLES = 10_000
REWARD = "heldout/reward"
EXTRA = {"revised": "heldout/reward_revised_1", "entropy": "update/entropy"}
"""Further last values, where a run has them."""


@dataclass(frozen=True)
class Outcome:
    """How one run ended."""

    seed: int
    answers: np.ndarray
    """Sampled answers at each validation."""
    rewards: np.ndarray
    """Held-out reward of plain attempts there."""
    extra: dict[str, float]

    @property
    def final(self) -> float:
        return float(self.rewards[-1])

    def mean_until(self, budget: int) -> float:
        """Mean of the curve from 0 to the budget: the area under it."""
        grid = np.linspace(0, budget, 513)
        return float(np.interp(grid, self.answers, self.rewards).mean())

    def reaches(self, level: float, budget: int) -> float:
        """Sampled answers after which the curve first reaches a level; the budget if it never does."""
        grid = np.arange(budget + 1)
        above = np.flatnonzero(np.interp(grid, self.answers, self.rewards) >= level)
        return float(above[0]) if len(above) else float(budget)


def outcome(folder: Path, budget: int) -> Outcome:
    """Reads a finished run up to its budget: the batch that reaches it may go beyond."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    points = {event.step: event.value for event in events.Scalars(REWARD)}  # of two at one step the last
    every = sorted(points)
    steps = [step for step in every if step < budget] + [min(budget, every[-1])]
    tags = set(events.Tags()["scalars"])
    return Outcome(
        seed=json.loads((folder / "summary.json").read_text())["seed"],
        answers=np.array(steps),
        rewards=np.interp(steps, every, [points[step] for step in every]),
        extra={name: events.Scalars(tag)[-1].value for name, tag in EXTRA.items() if tag in tags},
    )


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and 95 % interval of the mean, by bootstrap over seeds."""
    array = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.percentile(array[drawn].mean(1), [2.5, 97.5])
    std = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return {"mean": float(array.mean()), "std": std, "low": float(low), "high": float(high)}


def compare(arms: Mapping[str, Sequence[Outcome]], baseline: str, budget: int) -> dict[str, dict[str, Any]]:
    """Returns the numbers of each arm; `difference` is paired by seed with the baseline."""
    level = float(np.mean([one.final for one in arms[baseline]]))
    base = {one.seed: one.final for one in arms[baseline]}
    return {
        name: {
            "final": interval([one.final for one in several]),
            "difference": interval([one.final - base[one.seed] for one in several]),
            "area": interval([one.mean_until(budget) for one in several]),
            "answers_to_baseline": interval([one.reaches(level, budget) for one in several]),
            "never_reached": sum(bool(one.rewards.max() < level) for one in several),
            **{
                key: interval([one.extra[key] for one in several])
                for key in EXTRA
                if all(key in one.extra for one in several)
            },
            "runs": [
                {
                    "seed": one.seed,
                    "final": one.final,
                    "curve": [[int(n), float(r)] for n, r in zip(one.answers, one.rewards, strict=True)],
                }
                for one in several
            ],
        }
        for name, several in arms.items()
    }


def table(arms: Mapping[str, Mapping[str, Any]], baseline: str) -> str:
    """Returns a Markdown table."""
    extra = [key for key in EXTRA if any(key in arm for arm in arms.values())]
    heads = ["", "final", "95 %", f"minus {baseline}, 95 %", "area", f"answers to {baseline}'s final", *extra]
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)]]
    for name, arm in arms.items():
        final, difference, needed = arm["final"], arm["difference"], arm["answers_to_baseline"]
        never = f", {arm['never_reached']} never" if arm["never_reached"] else ""
        lines.append(
            [
                name,
                f"{final['mean']:.3f} ± {final['std']:.3f}",
                f"{final['low']:.3f} to {final['high']:.3f}",
                f"{difference['mean']:+.3f}, {difference['low']:+.3f} to {difference['high']:+.3f}",
                f"{arm['area']['mean']:.3f}",
                f"{needed['mean']:.0f}{never}",
                *(f"{arm[key]['mean']:.3f}" if key in arm else "" for key in extra),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(arms: Mapping[str, Sequence[Outcome]], budget: int, path: Path) -> None:
    """Draws the mean curve of each arm, with a band of one standard deviation over its seeds."""
    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=150)
    grid = np.linspace(0, budget, 120)
    for number, (name, several) in enumerate(arms.items()):
        values = np.array([np.interp(grid, one.answers, one.rewards) for one in several])
        mean, std = values.mean(0), values.std(0, ddof=1) if len(several) > 1 else 0
        color = COLORS[number % len(COLORS)]
        style = "-" if number < len(COLORS) else "--"
        axes.plot(grid, mean, style, label=f"{name} (n = {len(several)})", color=color, linewidth=2)
        axes.fill_between(grid, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel("sampled answers (attempts and revisions)")
    axes.set_ylabel("held-out reward")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
