"""Whether revisions do what attempts rarely do: how often each criterion is met by either.

    python tools/study/criteria.py runs/study_main/runs/herl runs/study_main/runs/grpo

For each folder of runs that differ in their seeds: attempts and revisions over the first and the last quarter
of the sampled answers, and held-out answers at the end; means over seeds, as a Markdown table. Criteria stand
in the order of how rarely attempts meet them at first.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COLUMNS = {
    "attempts, first": ("train_criterion", 0.0, 0.25),
    "revisions, first": ("revision_criterion", 0.0, 0.25),
    "attempts, last": ("train_criterion", 0.75, 1.0),
    "revisions, last": ("revision_criterion", 0.75, 1.0),
    "held out, end": ("heldout_criterion", 1.0, 1.0),
}


def rates(run: Path) -> dict[str, dict[str, float]]:
    """Returns the rate of each criterion under each column that the run has."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    curves = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    last = max(event.step for event in curves["heldout/reward"])
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for tag, points in curves.items():
        family, _, criterion = tag.partition("/")
        for column, (wanted, start, end) in COLUMNS.items():
            inside = [p.value for p in points if start * last <= p.step <= end * last]
            if family == wanted and inside:
                found[criterion][column] = float(np.mean(inside))
    return found


def main() -> None:
    for arm in map(Path, sys.argv[1:]):
        runs = [rates(run) for run in sorted(arm.iterdir()) if (run / "summary.json").is_file()]
        if not runs:
            raise SystemExit(f"{arm}: expected folders of finished runs, found none")
        mean = {
            criterion: {
                column: float(np.mean(values))
                for column in COLUMNS
                if (values := [run[criterion][column] for run in runs if column in run.get(criterion, {})])
            }
            for criterion in runs[0]
        }
        columns = [column for column in COLUMNS if any(column in row for row in mean.values())]
        print(f"\n{arm.name}, {len(runs)} seeds\n\n| criterion | " + " | ".join(columns) + " |")
        print("| --- |" + " --: |" * len(columns))
        for criterion, row in sorted(mean.items(), key=lambda item: item[1].get(columns[0], 1.0)):
            cells = [f"{row[column]:.2f}" if column in row else "" for column in columns]
            print(f"| {criterion} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
