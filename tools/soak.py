r"""Trains under every fault at once for a while, and compares each run with one that met none.

python tools/soak.py --minutes 30 --out soak.json

In rounds: a quiet run against a judge without faults, then the same run against a judge of which 30 % of the
replies go wrong, killed at random moments and resumed. Beside the rounds, one long run uses the same reply
cache all the time. Once, for a minute, the disk that holds both runs and the cache is full.

Must hold: every answer of the hard run is there once, with the reward that the quiet run gave it; weights and
held-out reward are equal bit for bit; the long run's memory stays flat. The exit code is 1 if one of them
does not. Only the judge's endpoint is a fake, over real HTTP. The disk is a tmpfs in a mount namespace of
this process (`unshare`, Linux); where that is refused, the report says that no disk was full.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from kill_and_resume import SHORT, Kind, outcome, same

from tests.support.fake_endpoint import FakeEndpoint, verdicts_by_hash

ROUND = (*SHORT, "trainer.max_epochs=2", "trainer.limit_train_batches=8", "rollout.attempts_per_prompt=4")
LONG = (*ROUND, "trainer.max_epochs=100000", "seed=1000")
DISK_MIB = 1024
IN_NAMESPACE = "HERL_SOAK_DISK"
"""Environment variable with the folder of the mounted disk; empty if nothing could be mounted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--fault-share", type=float, default=0.3)
    parser.add_argument("--kills", type=int, default=3, help="in each round")
    parser.add_argument("--full-seconds", type=float, default=60.0, help="how long the disk is full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    if IN_NAMESPACE not in os.environ:
        _again_with_a_disk_of_its_own()
    disk = os.environ[IN_NAMESPACE]
    with tempfile.TemporaryDirectory(dir=disk or None) as folder:
        soak = Soak(Path(folder), arguments, mounted=bool(disk))
        report = soak.run()
    for line in _lines(report):
        print(line)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    raise SystemExit(not report["passed"])


def _again_with_a_disk_of_its_own() -> None:
    """Starts this program again, in a mount namespace with a small disk."""
    with tempfile.TemporaryDirectory() as disk:
        mount = f'mount -t tmpfs -o size={DISK_MIB}m tmpfs "$0" && exec "$@"'
        inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, disk]
        refused = subprocess.run([*inside, "true"], capture_output=True).returncode != 0
        command = [sys.executable, *sys.argv]
        environment = os.environ | {IN_NAMESPACE: "" if refused else disk}
        code = subprocess.run(command if refused else [*inside, *command], env=environment).returncode
    raise SystemExit(code)


class Run:
    """A `herl fit` that goes on in its folder at each start."""

    def __init__(self, folder: Path, endpoint: FakeEndpoint, cache: Path, overrides: tuple[str, ...]) -> None:
        self.folder = folder
        self.log = folder.parent / f"{folder.name}.log"
        self._command = [
            sys.executable,
            "-m",
            "herl",
            "fit",
            *overrides,
            "judge=llm",
            f"judge.chat.base_url={endpoint.url}",
            "judge.chat.model=fake",
            "judge.chat.identity=fake",
            "judge.chat.try_timeout_seconds=2",
            "judge.limits.backoff_seconds=0.05",
            "judge.limits.tries=16",
            f"judge.cache.path={cache}",
            f"hydra.run.dir={folder}",
            "resume=auto",
        ]
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        log = os.open(os.devnull, os.O_WRONLY)
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError as error:  # the disk is full just now
            if error.errno != errno.ENOSPC:
                raise
        self.process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        os.close(log)
        return self.process

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


class Soak:
    """The rounds, the long run, the full disk, and what became of them."""

    def __init__(self, root: Path, arguments: argparse.Namespace, mounted: bool) -> None:
        self._root, self._arguments, self._mounted = root, arguments, mounted
        self._random = random.Random(arguments.seed)
        self._rounds: list[dict[str, Any]] = []
        self._memory: dict[int, list[float]] = {}
        self._over = threading.Event()
        self._full = threading.Event()
        self._failed_starts = Counter[str]()

    def run(self) -> dict[str, Any]:
        """Returns the report."""
        until = time.monotonic() + 60 * self._arguments.minutes
        cache, share = self._root / "replies.sqlite", self._arguments.fault_share
        with (
            FakeEndpoint(judge=verdicts_by_hash) as sound,
            FakeEndpoint(judge=verdicts_by_hash, fault_share=share, seconds=0.05) as faulty,
        ):
            long = Run(self._root / "long", faulty, cache, LONG)
            beside = threading.Thread(target=self._keep_running, args=(long,))
            beside.start()
            filling = threading.Timer(self._arguments.minutes * 30, self._fill)  # half-way
            if self._mounted:
                filling.start()
            try:
                while time.monotonic() < until or not self._rounds:
                    self._rounds.append(self._round(len(self._rounds), sound, faulty, cache))
                    print(_round_line(self._rounds[-1]), flush=True)
            finally:
                filling.cancel()
                if filling.ident is not None:
                    filling.join()
                self._over.set()
                beside.join()
            served = dict(faulty.served)
        return self._report(long, served)

    def _round(self, number: int, sound: FakeEndpoint, faulty: FakeEndpoint, cache: Path) -> dict[str, Any]:
        own = (*ROUND, f"seed={number}")
        folder = self._root / f"round-{number}"
        folder.mkdir()
        quiet = Run(folder / "quiet", sound, folder / "quiet.sqlite", own)
        started = time.monotonic()
        self._finish(quiet)
        seconds = time.monotonic() - started
        hard = Run(folder / "hard", faulty, cache, own)
        kills = 0
        for _ in range(self._arguments.kills):
            process = hard.start()
            try:
                process.wait(timeout=self._random.uniform(0.3, 0.9) * seconds)
            except subprocess.TimeoutExpired:
                hard.kill()
                kills += 1
        self._finish(hard)
        expected, got = outcome(Kind(), quiet.folder), outcome(Kind(), hard.folder)
        wrong = [name for name in expected if not same(expected[name], got[name], 0.0)]
        rewards = {id: reward for id, _, reward, _ in expected["answers"]}
        zeros = sum(reward == 0 and rewards.get(id) != 0 for id, _, reward, _ in got["answers"])
        lost = len(set(rewards) - {id for id, *_ in got["answers"]})
        if not wrong:
            subprocess.run(["rm", "-r", str(folder)], check=True)  # the disk is small
        return {
            "round": number, "seconds_quiet": round(seconds, 1), "kills": kills, "starts": hard.starts,
            "answers": len(rewards), "lost": lost, "false_zeros": zeros, "differs": wrong,
        }  # fmt: skip

    def _finish(self, run: Run) -> None:
        """Starts the run until it has ended well. It may fail while the disk is full, and only then."""
        while True:
            full = self._full.is_set()
            code = run.start().wait()
            if code == 0:
                return
            if not full and not self._full.is_set():
                raise SystemExit(f"{run.folder} ended with code {code}:\n{run.said()}")
            self._failed_starts["while the disk was full"] += 1
            time.sleep(5)

    def _keep_running(self, run: Run) -> None:
        """Runs it all the time, and measures its memory every second."""
        process = run.start()
        while not self._over.wait(1.0):
            if process.poll() is not None:
                if not self._full.is_set() and process.returncode != 0:
                    self._failed_starts[f"long run, code {process.returncode}"] += 1
                time.sleep(5)
                process = run.start()
            try:
                rss = psutil.Process(process.pid).memory_info().rss / 2**20
            except psutil.NoSuchProcess:
                continue
            self._memory.setdefault(run.starts, []).append(rss)
        process.send_signal(signal.SIGTERM)
        process.wait()

    def _fill(self) -> None:
        """Leaves not a byte on the disk for a while."""
        self._full.set()
        filler = self._root / "filler"
        ends = time.monotonic() + self._arguments.full_seconds
        with filler.open("wb", buffering=0) as file:
            while time.monotonic() < ends:
                for block in (bytes(2**20), bytes(2**12)):
                    with _until_full():
                        while True:
                            file.write(block)
                time.sleep(0.2)  # what others free is taken again
        filler.unlink()
        time.sleep(1.0)
        self._full.clear()

    def _report(self, long: Run, served: dict[str, int]) -> dict[str, Any]:
        memory = max(self._memory.values(), key=len)
        memory = memory[len(memory) // 4 :]  # without its start
        third = max(1, len(memory) // 3)
        first, last = statistics.median(memory[:third]), statistics.median(memory[-third:])
        unexpected = {name: n for name, n in self._failed_starts.items() if name.startswith("long run")}
        good = not any(one["lost"] or one["false_zeros"] or one["differs"] for one in self._rounds)
        return {
            "minutes": self._arguments.minutes, "rounds": self._rounds, "judge_served": served,
            "long_run": {
                "starts": long.starts, "seconds_measured": len(memory),
                "mib_first_third": round(first, 1), "mib_last_third": round(last, 1),
            },
            "disk_full_seconds": self._arguments.full_seconds if self._mounted else 0.0,
            "failed_starts": dict(self._failed_starts),
            "passed": good and not unexpected and last < 1.05 * first,
        }  # fmt: skip


@contextmanager
def _until_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _round_line(one: dict[str, Any]) -> str:
    end = f"DIFFERS in {', '.join(one['differs'])}" if one["differs"] else "equal"
    return (
        f"round {one['round']}: {one['kills']} kills, {one['starts']} starts, {one['answers']} answers, "
        f"{one['lost']} lost, {one['false_zeros']} false zeros: {end}"
    )


def _lines(report: dict[str, Any]) -> Iterator[str]:
    rounds, long, served = report["rounds"], report["long_run"], report["judge_served"]
    equal = sum(not one["differs"] for one in rounds)
    faults = sum(count for name, count in served.items() if name != "ok")
    yield f"{equal} of {len(rounds)} rounds equal the quiet run bit for bit"
    yield f"{sum(one['answers'] for one in rounds)} answers, {sum(one['lost'] for one in rounds)} lost"
    yield f"{sum(one['false_zeros'] for one in rounds)} false zeros"
    yield f"{sum(one['kills'] for one in rounds)} kills"
    yield f"{faults} of {sum(served.values())} replies of the judge went wrong: {served}"
    yield (
        f"the long run on the same cache took {long['mib_first_third']:.0f} MiB in the first third and "
        f"{long['mib_last_third']:.0f} MiB in the last, over {long['seconds_measured']} s"
    )
    full = report["disk_full_seconds"]
    yield f"the disk was full for {full:g} s" if full else "no disk was full: a mount was refused here"
    yield f"starts that failed: {report['failed_starts'] or 'none'}"
    yield "passed" if report["passed"] else "FAILED"


if __name__ == "__main__":
    main()
