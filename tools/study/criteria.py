"""Compares how often attempts and revisions fulfill each criterion.

    python tools/study/criteria.py runs/study_main/runs/herl runs/study_main/runs/grpo

For each folder of runs that differ in their seeds, prints two Markdown tables of means over seeds. The first
shows all attempts, the drafts that were revised, and their revisions, over the first and the last quarter of
the sampled answers, and held-out attempts at the end. Its criteria are sorted, those that attempts rarely
fulfill at first coming first. The second shows, by quarter of the run, the bonus of revised attempts and its
correlation with the criteria that their revisions fix.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from herl.records.lines import read_records
from report import CRITERION, last_values
from runs import Job

QUARTERS = ("first", "second", "third", "last")


def quarter(record: Mapping[str, Any], budget: int) -> str:
    return QUARTERS[min(3, 4 * int(record["answers_sampled"]) // (budget + 1))]


def kinds(records: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (kind, record): each answer as an attempt or revision, and each revision's draft again."""
    attempts: dict[str, dict[str, Any]] = {}
    for record in records:
        if record["origin"] == "replay":  # counted when it was new
            continue
        if record["parent_id"] is None:
            attempts[record["id"]] = record
            yield "attempts", record
        else:
            yield "drafts", attempts[record["parent_id"]]
            yield "revisions", record


def rates(run: Path) -> dict[tuple[str, str], float]:
    """Returns the rate of each (criterion, column) of a run, e.g. ("tip", "drafts, first")."""
    records = list(read_records(run))
    budget = max(record["answers_sampled"] for record in records)
    found: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for kind, record in kinds(records):
        for verdict in record["verdicts"]:
            if verdict["fulfilled"] is not None:
                key = verdict["criterion_id"], f"{kind}, {quarter(record, budget)}"
                found[key].append(verdict["fulfilled"])
    held_out = {(name, "held out, end"): rate for name, rate in last_values(run, CRITERION).items()}
    return {key: float(np.mean(values)) for key, values in found.items()} | held_out


def bonuses(run: Path) -> dict[tuple[str, str], float]:
    """Returns the bonus of revised attempts and its correlations, by (quarter, column)."""
    records = list(read_records(run))
    budget = max(record["answers_sampled"] for record in records)
    drafts = {record["id"]: record for record in records if record["parent_id"] is None}
    pairs: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for record in records:
        draft = drafts.get(record["parent_id"])
        if draft is not None and None not in (draft["reward"], record["reward"], draft["bonus"]):
            missed = [v for v in draft["verdicts"] if v["fulfilled"] is False]
            fulfilled = {v["criterion_id"]: v["fulfilled"] for v in record["verdicts"]}
            mended = np.mean([bool(fulfilled.get(v["criterion_id"])) for v in missed]) if missed else 0.0
            pairs[quarter(record, budget)].append((draft["bonus"], draft["reward"], float(mended)))
    found = {}
    for name, several in pairs.items():
        bonus, reward, mended = np.array(several).T
        found[name, "bonus"] = float(bonus.mean())
        found[name, "paid, share above 0"] = float((bonus > 0).mean())
        found[name, "reward of the draft"] = float(reward.mean())
        found[name, "share mended"] = float(mended.mean())
        if bonus.std() > 0 and reward.std() > 0 and mended.std() > 0:
            found[name, "correlation with mended"] = float(np.corrcoef(bonus, mended)[0, 1])
            found[name, "correlation with reward"] = float(np.corrcoef(bonus, reward)[0, 1])
    return found


def show(title: str, runs: list[dict[tuple[str, str], float]], columns: list[str], order: list[str]) -> None:
    """Prints the means over runs as a Markdown table."""
    kept = [column for column in columns if any(column == key[1] for run in runs for key in run)]
    print(f"\n{title}\n\n| | " + " | ".join(kept) + " |\n| --- |" + " --: |" * len(kept))
    for row in order:
        values = [[run[row, column] for run in runs if (row, column) in run] for column in kept]
        print(f"| {row} | " + " | ".join(f"{np.mean(cell):.2f}" if cell else "" for cell in values) + " |")


def main() -> None:
    for arm in map(Path, sys.argv[1:]):
        folders = [run for run in sorted(arm.iterdir()) if run.is_dir() and Job(run, []).done]
        if not folders:
            raise SystemExit(f"{arm}: expected folders of finished runs, found none")
        found = [rates(run) for run in folders]
        columns = [
            f"{kind}, {when}" for when in ("first", "last") for kind in ("attempts", "drafts", "revisions")
        ]
        first = {
            row: np.mean([run.get((row, columns[0]), 1.0) for run in found])
            for run in found
            for row, _ in run
        }
        order = sorted(first, key=lambda row: first[row])
        show(f"{arm.name}, {len(folders)} seeds", found, [*columns, "held out, end"], order)
        paid = [bonuses(run) for run in folders]
        if any(paid):
            columns = list(dict.fromkeys(column for run in paid for _, column in run))
            show(f"{arm.name}: the bonus of revised attempts", paid, columns, list(QUARTERS))


if __name__ == "__main__":
    main()
