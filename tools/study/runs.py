"""Runs herl fit in separate processes, several side by side, and skips finished runs."""

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

from herl.files import remove

LINES = 20
"""Lines of output to show of a failed run."""


@dataclass(frozen=True)
class Job:
    """One run."""

    folder: Path
    overrides: list[str]
    """Overrides of herl fit."""
    keeps: bool = True
    """Whether its checkpoints stay when it has finished."""

    @property
    def done(self) -> bool:
        """Whether the run finished; a stopped run has a summary, too, but no final reward."""
        return self.final is not None

    @property
    def final(self) -> float | None:
        """Held-out reward at the end; None before it."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text()).get("heldout_reward_after") if path.is_file() else None

    def check(self) -> None:
        """Refuses a folder that holds a run with other settings, which this run would continue.

        Raises:
            SystemExit: names the settings of both.
        """
        path, began = self.folder / "overrides.json", self.done or (self.folder / "checkpoints").is_dir()
        before = json.loads(path.read_text()) if path.is_file() else None
        if began and before != self.overrides:
            raise SystemExit(
                f"{self.folder}: expected a run with {self.overrides}, got one with "
                f"{before or 'unknown settings'}; remove it, or choose another out="
            )

    def run(self, threads: int) -> float:
        """Runs to the end, from the newest checkpoint if there is one, and returns the seconds it took.

        Raises:
            RuntimeError: the run failed; includes the end of its output.
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
        if not self.keeps:
            remove(self.folder / "checkpoints")
        return time.perf_counter() - started


def run_all(jobs: Sequence[Job], side_by_side: int) -> None:
    """Runs all unfinished jobs. A failed run does not stop the others, unless all fail from the start.

    Raises:
        SystemExit: some runs failed.
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
                    if len(failed) == number >= side_by_side:  # all have failed so far
                        break
                    continue
                remaining = (time.perf_counter() - started) / number * (len(left) - number)
                line = f"{number}/{len(left)} {job.folder}: {job.final:.3f} in {future.result():.0f} s"
                console.print(f"{line}, {remaining / 60:.0f} min left", soft_wrap=True, highlight=False)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C, too: no further run starts
    if failed:
        raise SystemExit(f"{len(failed)} of {len(left)} runs failed; repeat the command to continue")
