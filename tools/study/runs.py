"""Runs herl fit in processes of their own, some side by side; what is finished is not run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

LINES = 20
"""Of a run's output, shown when it fails."""


@dataclass(frozen=True)
class Job:
    """One run."""

    folder: Path
    overrides: list[str]
    """Of herl fit."""

    @property
    def done(self) -> bool:
        """Whether it came to its end; one that was stopped has a summary, too."""
        return self.final is not None

    @property
    def final(self) -> float | None:
        """Held-out reward at the end; None before it."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text()).get("heldout_reward_after") if path.is_file() else None

    def check(self) -> None:
        """Stops where the folder holds a run with other settings, which this one would go on with.

        Raises:
            SystemExit: with both.
        """
        path, began = self.folder / "overrides.json", self.done or (self.folder / "checkpoints").is_dir()
        if path.is_file() and began and (before := json.loads(path.read_text())) != self.overrides:
            raise SystemExit(
                f"{self.folder}: expected a run with {self.overrides}, got one with {before}: "
                "remove it, or choose another out="
            )

    def run(self, threads: int) -> float:
        """Runs to the end, from its newest checkpoint if there is one; returns the seconds it took.

        Raises:
            RuntimeError: the run failed, with the end of what it said.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "overrides.json").write_text(json.dumps(self.overrides))
        started = time.perf_counter()
        with (self.folder / "output.log").open("ab") as log:
            code = subprocess.call(
                [sys.executable, "-m", "herl", "fit", *self.overrides],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
        if code or not self.done:
            log = self.folder / "output.log"
            end = "\n".join(log.read_text(errors="replace").splitlines()[-LINES:])
            raise RuntimeError(f"{self.folder}: ended with code {code}; the end of {log}:\n{end}")
        return time.perf_counter() - started


def run_all(jobs: Sequence[Job], side_by_side: int) -> None:
    """Runs what is not done yet. A run that fails does not stop the others, unless none works.

    Raises:
        SystemExit: some failed.
    """
    for job in jobs:
        job.check()
    left = [job for job in jobs if not job.done]
    threads = max(1, (os.cpu_count() or 1) // side_by_side)
    console, failed, started = Console(), [], time.perf_counter()
    with ThreadPoolExecutor(side_by_side) as pool:
        futures = {pool.submit(job.run, threads): job for job in left}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                job = futures[future]
                if error := future.exception():
                    failed.append(job)
                    console.print(str(error), markup=False, soft_wrap=True)
                    if len(failed) == number >= side_by_side:  # none has worked so far
                        break
                    continue
                remaining = (time.perf_counter() - started) / number * (len(left) - number)
                said = f"{number}/{len(left)} {job.folder}: {job.final:.3f} in {future.result():.0f} s"
                console.print(f"{said}, {remaining / 60:.0f} min left", soft_wrap=True, highlight=False)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C, too: none begins any more
    if failed:
        raise SystemExit(f"{len(failed)} of {len(left)} runs failed; run the same command again to go on")
