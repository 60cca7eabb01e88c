"""Reports a study: curves over sampled answers, means with intervals over seeds, a table, a picture.

Draws some arms of a finished study:

    cd tools/study; python report.py results/options.json herl told grpo out=../pictures/embedded.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COLORS = ("#1b7f5c", "#5b6abf", "#c2701c", "#a3324b", "#7a6a2f", "#3a8fb7", "#6b4c8a", "#777777")
RESAMPLES = 10_000
CHANGE = ", change"
FIRST = ("revised", "chosen", "entropy")
"""Columns that come before those of the guards."""
REWARD = "heldout/reward"
REVISED, ENTROPY, CRITERION = "heldout/reward_revised_1", "update/entropy", "heldout_criterion/"
T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; 1.96 to 2.13 beyond."""


@dataclass(frozen=True)
class Outcome:
    """How one run ended."""

    seed: int
    answers: np.ndarray
    """Sampled answers, or tokens, at each validation."""
    rewards: np.ndarray
    """Held-out reward of plain attempts there."""
    extra: dict[str, float]
    """Further numbers at the end: `revised` (held-out reward, best of an attempt and its revision), `entropy`
    of the tokens trained on in the last quarter, in nats, `chosen` (mean rate of the given criteria), and the
    guards, each with its change since before the training."""

    @property
    def final(self) -> float:
        return float(self.rewards[-1])

    def mean_until(self, budget: int) -> float:
        """Returns the mean of the curve from 0 to the budget: the area under it."""
        grid = np.linspace(0, budget, 513)
        return float(np.interp(grid, self.answers, self.rewards).mean())

    def reaches(self, level: float, budget: int) -> float:
        """Returns the answers or tokens after which the curve first reaches a level, or else the budget."""
        grid = np.arange(budget + 1)
        above = np.flatnonzero(np.interp(grid, self.answers, self.rewards) >= level)
        return float(above[0]) if len(above) else float(budget)


def read_curves(folder: Path) -> dict[str, dict[int, float]]:
    """Returns a run's curves by tag, as value by step; if a step has two values, the last one counts."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def last_values(folder: Path, prefix: str) -> dict[str, float]:
    """Returns the last value of each curve whose tag starts with `prefix`, by the rest of the tag."""
    curves = read_curves(folder)
    return {
        tag.removeprefix(prefix): points[max(points)]
        for tag, points in curves.items()
        if tag.startswith(prefix)
    }


def outcome(folder: Path, budget: int, criteria: Sequence[str] = (), guards: Sequence[str] = ()) -> Outcome:
    """Reads a finished run up to its budget, which its last batch may exceed.

    Args:
        folder: The run's folder.
        budget: Sampled answers, or tokens if the curves are over them.
        criteria: Ids of the criteria whose mean rate on held-out attempts to report.
        guards: Ids of criteria whose rate to report one by one, and its change.

    Raises:
        SystemExit: the run ended before its budget, or has no such criterion.
    """
    curves = read_curves(folder)
    every = sorted(curves[REWARD])
    if every[-1] < budget:
        raise SystemExit(
            f"{folder}: expected a run that reaches its budget of {budget}, got one of {every[-1]}; use "
            "more data, more trainer.max_epochs, or a smaller budget"
        )

    def until_budget(tag: str) -> tuple[list[int], np.ndarray]:
        steps = sorted(curves[tag])
        kept = [step for step in steps if step < budget] + [min(budget, steps[-1])]
        return kept, np.interp(kept, steps, [curves[tag][step] for step in steps])

    steps, rewards = until_budget(REWARD)
    extra = {"revised": float(until_budget(REVISED)[1][-1])} if REVISED in curves else {}
    if ENTROPY in curves:
        late = [value for step, value in curves[ENTROPY].items() if 0.75 * budget <= step <= budget]
        extra["entropy"] = float(np.mean(late))
    if missing := [name for name in (*criteria, *guards) if CRITERION + name not in curves]:
        raise SystemExit(
            f"criteria, guards: expected some of {sorted(last_values(folder, CRITERION))}, got {missing}"
        )
    if criteria:
        extra["chosen"] = float(np.mean([until_budget(CRITERION + name)[1][-1] for name in criteria]))
    for name in guards:
        rates = until_budget(CRITERION + name)[1]
        extra |= changed(name, float(rates[0]), float(rates[-1]))
    seed = json.loads((folder / "summary.json").read_text())["seed"]
    return Outcome(seed=seed, answers=np.array(steps), rewards=rewards, extra=extra)


def changed(name: str, before: float, after: float) -> dict[str, float]:
    """Returns a number at the end and its change, under the names of two columns."""
    return {name: after, f"{name}{CHANGE}": after - before}


def interval(values: Sequence[float]) -> dict[str, float]:
    """Returns mean, standard deviation and 95 % intervals of the mean over seeds; only the mean for one seed.

    `low` and `high` come from a percentile bootstrap, which is too narrow for few seeds; `t_low` and `t_high`
    from Student's t.
    """
    array = np.asarray(values, dtype=float)
    found = {"mean": float(array.mean())}
    if len(array) == 1:
        return found
    drawn = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.percentile(array[drawn].mean(1), [2.5, 97.5])
    std = float(array.std(ddof=1))
    half = T_975[min(len(array) - 1, len(T_975)) - 1] * std / len(array) ** 0.5
    found |= {"std": std, "low": float(low), "high": float(high)}
    return found | {"t_low": found["mean"] - half, "t_high": found["mean"] + half}


def compare(arms: Mapping[str, Sequence[Outcome]], baseline: str, budget: int) -> dict[str, dict[str, Any]]:
    """Returns the numbers of each arm; `difference` is paired by seed with the baseline."""
    level = float(np.mean([run.final for run in arms[baseline]]))
    base = {run.seed: run.final for run in arms[baseline]}
    extra = dict.fromkeys(key for runs in arms.values() for run in runs for key in run.extra)
    return {
        name: {
            "final": interval([run.final for run in runs]),
            "difference": interval([run.final - base[run.seed] for run in runs]),
            "area": interval([run.mean_until(budget) for run in runs]),
            "answers_to_baseline": interval([run.reaches(level, budget) for run in runs]),
            "never_reached": sum(bool(run.rewards.max() < level) for run in runs),
            **{
                key: interval([run.extra[key] for run in runs])
                for key in extra
                if all(key in run.extra for run in runs)
            },
            "runs": [
                {
                    "seed": run.seed,
                    "final": run.final,
                    "curve": [[int(n), float(r)] for n, r in zip(run.answers, run.rewards, strict=True)],
                }
                for run in runs
            ],
        }
        for name, runs in arms.items()
    }


def table(arms: Mapping[str, Mapping[str, Any]], baseline: str, unit: str = "answers") -> str:
    """Returns a Markdown table."""
    known = ("final", "difference", "area", "answers_to_baseline", "never_reached", "runs")
    found = dict.fromkeys(key for arm in arms.values() for key in arm if key not in known)
    extra = sorted(found, key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST))
    heads = ["", "final", "95 %", f"minus {baseline}", "95 %, paired", "area", f"{unit} to its final", *extra]
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)]]
    for name, arm in arms.items():
        final, difference, needed = arm["final"], arm["difference"], arm["answers_to_baseline"]
        never = f", {arm['never_reached']} never" if arm["never_reached"] else ""
        spread = f" ± {final['std']:.3f}" if "std" in final else ""
        lines.append(
            [
                name,
                f"{final['mean']:.3f}{spread}",
                _range(final, ".3f"),
                "" if name == baseline else f"{difference['mean']:+.3f}",
                "" if name == baseline else _range(difference, "+.3f"),
                f"{arm['area']['mean']:.3f}",
                f"{needed['mean']:.0f}{never}",
                *(f"{arm[key]['mean']:{_form(key)}}" if key in arm else "" for key in extra),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _form(key: str) -> str:
    return "+.3f" if key.endswith(CHANGE) else ".3f"


def _range(found: Mapping[str, float], form: str) -> str:
    return f"{found['t_low']:{form}} to {found['t_high']:{form}}" if "t_low" in found else ""


def draw(arms: Mapping[str, Sequence[Outcome]], budget: int, path: Path, unit: str = "answers") -> None:
    """Draws the mean curve of each arm, with a band of one standard deviation over its seeds."""
    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=150)
    grid = np.linspace(0, budget, 120)
    for number, (name, runs) in enumerate(arms.items()):
        values = np.array([np.interp(grid, run.answers, run.rewards) for run in runs])
        mean, std = values.mean(0), values.std(0, ddof=1) if len(runs) > 1 else 0
        color = COLORS[number % len(COLORS)]
        style = "-" if number < len(COLORS) else "--"
        axes.plot(grid, mean, style, label=f"{name} (n = {len(runs)})", color=color, linewidth=2)
        axes.fill_between(grid, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel(f"sampled {unit} (attempts and revisions)")
    axes.set_ylabel("held-out reward")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:] if argument.startswith("out="))
    file, *names = (argument for argument in sys.argv[1:] if not argument.startswith("out="))
    results = json.loads(Path(file).read_text())
    arms = {
        name: [
            Outcome(run["seed"], *np.array(run["curve"]).T, extra={}) for run in results["arms"][name]["runs"]
        ]
        for name in names or results["arms"]
    }
    unit = "tokens" if results["study"].get("tokens") else "answers"
    draw(arms, results["study"][unit], Path(given.get("out", "curves.png")), unit)


if __name__ == "__main__":
    main()
