"""Measures revision at test time against spending the same number of tokens on more attempts.

    python tools/study/test_time.py base= trained=runs/mine
    python tools/study/test_time.py base= rounds=2 max_attempts=8 out=runs/mine -- experiment=smollm2_if

NAME=RUN is a run of herl fit, whose best checkpoint answers; NAME= is the untrained model. Arguments after --
are passed on to herl. Improvement keeps the best answer so far, as does best-of-n; both use the judge.
Best-of-n is the expectation over all subsets of `max_attempts` attempts. Tokens are those of the answers, per
prompt. Writes test_time.md, test_time.json and test_time.png to `out`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from report import COLORS

OPTIONS = {"rounds": "4", "max_attempts": "24", "out": "runs/test_time"}


def answers(verb: str, run: str, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Runs a verb of herl, unless it has run before, and returns its answers."""
    if not (folder / "summary.json").is_file():
        source = [f"run={run}"] if run else []
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "output.log").open("w") as log:
            command = [sys.executable, "-m", "herl", verb, *source, *overrides, f"hydra.run.dir='{folder}'"]
            if subprocess.call(command, stdout=log, stderr=log):
                raise SystemExit(f"{' '.join(command)} failed: see {folder / 'output.log'}")
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def by_round(records: Sequence[dict[str, Any]], rounds: int) -> list[tuple[float, float]]:
    """Returns (mean tokens, mean reward of the best answer so far) after 0, 1, ... rounds."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        found[record["trajectory"]].append(record)
    curve = []
    for number in range(rounds + 1):
        seen = [[one for one in several if one["round"] <= number] for several in found.values()]
        rewards = [max(one["reward"] for one in several if one["reward"] is not None) for several in seen]
        tokens = [sum(one["tokens"] for one in several) for several in seen]
        curve.append((float(np.mean(tokens)), float(np.mean(rewards))))
    return curve


def best_of(records: Sequence[dict[str, Any]], max_attempts: int) -> list[tuple[float, float]]:
    """Returns (mean tokens, expected reward of the best) of 1, 2, ... attempts at each prompt."""
    tasks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        tasks[record["task_id"]].append(record)
    rewards = [
        sorted(one["reward"] for one in several if one["reward"] is not None) for several in tasks.values()
    ]
    tokens = float(np.mean([one["tokens"] for one in records]))
    return [
        (n * tokens, float(np.mean([expected_best(one, n) for one in rewards])))
        for n in range(1, max_attempts + 1)
    ]


def expected_best(rewards: Sequence[float], n: int) -> float:
    """Returns the expected maximum of n of these sorted rewards, drawn without replacement."""
    n = min(n, len(rewards))
    weights = [comb(place, n - 1) / comb(len(rewards), n) for place in range(len(rewards))]
    return sum(weight * reward for weight, reward in zip(weights, rewards, strict=True))


def table(found: dict[str, dict[str, list[tuple[float, float]]]]) -> str:
    """Returns a Markdown table of each round next to best-of-n with the same number of tokens."""
    lines = ["| | round | tokens | improved | best-of-n at as many tokens | n |", "| --- |" + " --: |" * 5]
    for name, curves in found.items():
        tokens, rewards = map(np.array, zip(*curves["best_of"], strict=True))
        for number, (spent, reward) in enumerate(curves["improve"]):
            same = float(np.interp(spent, tokens, rewards))
            n = spent / tokens[0]
            shown = f"{same:.3f}" if spent <= tokens[-1] else f"at most {tokens[-1]:.0f}: {rewards[-1]:.3f}"
            lines.append(f"| {name} | {number} | {spent:.0f} | {reward:.3f} | {shown} | {n:.1f} |")
    return "\n".join(lines) + "\n"


def draw(found: dict[str, dict[str, list[tuple[float, float]]]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=150)
    for number, (name, curves) in enumerate(found.items()):
        color = COLORS[number % len(COLORS)]
        axes.plot(*zip(*curves["improve"], strict=True), "o-", color=color, label=f"{name}, revised")
        axes.plot(*zip(*curves["best_of"], strict=True), "--", color=color, label=f"{name}, best of n")
    axes.set_xlim(0, 1.05 * max(curves["improve"][-1][0] for curves in found.values()))
    axes.set_xlabel("answer tokens per prompt")
    axes.set_ylabel("held-out reward of the best answer")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, overrides = [one.partition("=")[::2] for one in sys.argv[1:cut]], sys.argv[cut + 1 :]
    options = OPTIONS | {name: value for name, value in given if name in OPTIONS}
    models = [(name, run) for name, run in given if name not in OPTIONS]
    if not models:
        raise SystemExit(__doc__)
    out, rounds, max_attempts = Path(options["out"]), int(options["rounds"]), int(options["max_attempts"])
    found = {}
    for name, run in models:
        improved = answers("improve", run, out / name / "improve", *overrides, f"rounds={rounds}")
        plain = f"module.validation_attempts={max_attempts}", "module.validation_revisions=0"
        sampled = answers("validate", run, out / name / "best_of", *overrides, *plain)
        found[name] = {"improve": by_round(improved, rounds), "best_of": best_of(sampled, max_attempts)}
    (out / "test_time.json").write_text(json.dumps(found, indent=2) + "\n")
    (out / "test_time.md").write_text(table(found))
    draw(found, out / "test_time.png")
    print(table(found))


if __name__ == "__main__":
    main()
