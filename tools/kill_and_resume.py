r"""Kills short runs of the embedded task with SIGKILL, starts them again, and compares them with whole runs.

python tools/kill_and_resume.py --kills 50
python tools/kill_and_resume.py --kinds any --kills 5 strategy=fsdp trainer.devices=2
python tools/kill_and_resume.py --kills 5 --kinds any --tolerance 1e-4 \
    sampler=vllm sampler.kv_cache_gib=0.25 sampler.max_model_len=512

A kill is of one of these kinds, in turn; --seed chooses the moments.

any          anywhere in the life of the process, start-up included
checkpoint   while a checkpoint is being written; best and summary: the same for best.ckpt and summary.json
ranks        anywhere, with two processes, which die together
one_rank     the same, but only the second process is killed
cache        anywhere, with a judge over HTTP, whose replies are cached
export       while `herl export` writes a model

Equal means that weights, the optimizer's moments, counts, the best checkpoint, every recorded answer with its
reward and advantage, and the final held-out reward are bit-identical, or equal within a tolerance if one is
given; of an export, that all files are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.fake_endpoint import FakeEndpoint, verdicts_by_hash

SHORT = (
    "experiment=embedded",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=6",
    "trainer.limit_val_batches=1",
    "trainer.val_check_interval=4",
    "data.prompts_per_batch=8",
    "callbacks.checkpoints.every_n_batches=2",
    "module.validation_attempts=1",
)
RANKS = ("strategy=ddp", "trainer.devices=2")
CACHE = ("judge=llm", "judge.chat.model=m", "judge.chat.identity=fake")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of kill."""

    setting: str = "plain"
    """The whole run that it is compared with; each has other overrides."""
    during: str = ""
    """Files whose writing it interrupts; "" for any moment."""
    verb: str = "fit"
    one_rank: bool = False


KINDS = {
    "any": Kind(),
    "checkpoint": Kind(during="checkpoints/batch-*.part"),
    "best": Kind(during="checkpoints/best.ckpt.part"),
    "summary": Kind(during="summary.json*"),
    "ranks": Kind(setting="ranks"),
    "one_rank": Kind(setting="ranks", one_rank=True),
    "cache": Kind(setting="cache"),
    "export": Kind(verb="export", during=".part/*"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """A row of the table."""

    kind: str
    seconds: float
    killed: bool
    """False if the process had ended by then."""
    saved: list[str]
    """What the killed run left."""
    wrong: list[str]
    """What differs from the whole run."""


class Runs:
    """Starts processes of herl, with the same settings for whole, killed and resumed runs.

    Args:
        root: Folder for the runs.
        overrides: Overrides of herl fit.
        url: Address of the judge.
    """

    def __init__(self, root: Path, overrides: Sequence[str], url: str) -> None:
        self.root = root
        self._overrides = overrides
        self._url = url
        self.seconds: dict[tuple[str, str], float] = {}
        """How long a whole process took, by verb and setting."""

    def whole(self, kind: Kind) -> Path:
        """Returns the folder that an unbroken process of this kind wrote."""
        folder = self.root / f"whole-{kind.verb}-{kind.setting}"
        if not folder.exists():
            if kind.verb == "export":
                self.whole(Kind(setting=kind.setting))
            began = time.perf_counter()
            self.finish(kind, folder)
            self.seconds[kind.verb, kind.setting] = time.perf_counter() - began
        return folder

    def start(self, kind: Kind, folder: Path) -> subprocess.Popen[bytes]:
        """Starts or resumes a process."""
        words = [f"run={self.root / f'whole-fit-{kind.setting}'}", f"out={folder}"]
        if kind.verb == "fit":
            further = {"ranks": RANKS, "cache": (*CACHE, f"judge.chat.base_url={self._url}",
                       f"judge.cache.path={self.root / folder.name}.sqlite")}  # fmt: skip
            words = [*SHORT, *further.get(kind.setting, ()), *self._overrides]
            words += [f"hydra.run.dir={folder}", "resume=auto"]
        with self._log(folder).open("ab") as log:
            command = [sys.executable, "-m", "herl", kind.verb, *words]
            return subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.root, start_new_session=True, env=_environment()
            )

    def finish(self, kind: Kind, folder: Path) -> None:
        """Runs to the end."""
        if self.start(kind, folder).wait() != 0:
            raise SystemExit(self._log(folder).read_text()[-4000:])

    def kill(self, kind: Kind, folder: Path, rng: random.Random) -> tuple[float, bool]:
        """Starts a process and kills it. Returns the moment, and False if the process had ended by then."""
        self.whole(kind)
        share, skipped, delay = rng.random(), rng.randrange(3), 0.03 * rng.random() ** 2
        skipped = skipped if "batch-" in kind.during else 0  # others are written once or twice
        moment = 0.0 if kind.during else share * self.seconds[kind.verb, kind.setting]
        began = time.perf_counter()
        process = self.start(kind, folder)
        there = False
        while process.poll() is None:
            now = any(folder.glob(kind.during)) if kind.during else False
            skipped -= there and not now
            there = now
            if (now and skipped <= 0) or (not kind.during and time.perf_counter() - began >= moment):
                time.sleep(delay)
                break
            time.sleep(0.0005 if kind.during else 0.01)
        moment, alive = time.perf_counter() - began, process.poll() is None
        _end(process, kind.one_rank)
        return moment, alive

    def _log(self, folder: Path) -> Path:
        return self.root / f"{folder.name}.log"


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": path}


def _end(process: subprocess.Popen[bytes], one_rank: bool) -> None:
    """Kills a process with those it started; or one of these, and waits until the others have noticed."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if one_rank and (others := psutil.Process(process.pid).children()):
            others[0].kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def outcome(kind: Kind, folder: Path) -> dict[str, Any]:
    """Returns the results that are compared."""
    if kind.verb == "export":
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    last, best = (_checkpoint(folder / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    records = [
        json.loads(line)
        for file in sorted((folder / "records").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    return {
        "weights": last["state_dict"],
        "optimizer": last["optimizer_states"] if "optimizer_states" in last else last.get("optimizer_0"),
        "counts": last["herl"]["counts"],
        "best": best["state_dict"],
        "answers": [(r["id"], r["text"], r["reward"], r["advantage"]) for r in records],
        "heldout": json.loads((folder / "summary.json").read_text())["heldout_reward_after"],
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    path = path.resolve()
    if path.is_dir():
        return dict(_load_distributed_checkpoint(path))
    return dict(torch.load(path, map_location="cpu", weights_only=False))


def same(expected: Any, got: Any, tolerance: float) -> bool:
    """Whether two outcomes are equal, bit for bit at a tolerance of 0."""
    if isinstance(expected, torch.Tensor) and isinstance(got, torch.Tensor):
        if tolerance == 0:
            return torch.equal(expected.view(-1).view(torch.uint8), got.view(-1).view(torch.uint8))
        return torch.allclose(expected, got, rtol=tolerance, atol=tolerance)
    if isinstance(expected, dict) and isinstance(got, dict):
        return expected.keys() == got.keys() and all(same(expected[k], got[k], tolerance) for k in expected)
    if isinstance(expected, list | tuple):
        return len(expected) == len(got) and all(map(same, expected, got, [tolerance] * len(got)))
    if isinstance(expected, float):
        return isinstance(got, float) and abs(expected - got) <= tolerance
    return bool(expected == got)


def tried(runs: Runs, name: str, number: int, rng: random.Random, tolerance: float) -> Killed:
    """Kills a process, starts it again, and compares the result."""
    kind = KINDS[name]
    expected = outcome(kind, runs.whole(kind))
    folder = runs.root / f"killed-{number}"
    moment, killed = runs.kill(kind, folder, rng)
    saved = sorted(path.name for path in [*folder.glob("checkpoints/*"), *folder.glob("*.json*")])
    runs.finish(kind, folder)
    got = outcome(kind, folder)
    names = expected.keys() | got.keys()
    wrong = [one for one in names if not same(expected.get(one), got.get(one), tolerance)]
    wrong += [path.name for path in folder.rglob("*.part")]
    return Killed(kind=name, seconds=round(moment, 2), killed=killed, saved=saved, wrong=sorted(wrong))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="overrides of herl fit")
    parser.add_argument("--kills", type=int, default=len(KINDS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=0.0)
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    found: list[Killed] = []
    with tempfile.TemporaryDirectory() as temporary, FakeEndpoint(judge=verdicts_by_hash) as endpoint:
        runs = Runs(Path(temporary), arguments.overrides, endpoint.url)
        print("number  kind        after s  left behind                                    outcome")
        for number in range(arguments.kills):
            name = arguments.kinds[number % len(arguments.kinds)]
            rng = random.Random(f"{arguments.seed} {number} {name}")
            one = tried(runs, name, number, rng, arguments.tolerance)
            found.append(one)
            said = f"differs in {', '.join(one.wrong)}" if one.wrong else "equal"
            left = ", ".join(one.saved[-2:]) or "nothing"
            print(f"{number + 1:6}  {name:<10} {one.seconds:8.2f}  {left[:45]:<45}  {said}"
                  f"{'' if one.killed else ' (had ended)'}", flush=True)  # fmt: skip
    equal, killed = sum(not one.wrong for one in found), sum(one.killed for one in found)
    print(f"{equal} of {len(found)} equal; {killed} were killed, the others had ended")
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")
    raise SystemExit(equal != len(found))


if __name__ == "__main__":
    main()
