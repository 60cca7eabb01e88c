r"""Kills short runs of the embedded task at random moments, resumes them, and compares them with a whole run.

python tools/kill_and_resume.py --kills 20
python tools/kill_and_resume.py --kills 5 strategy=fsdp trainer.devices=2
python tools/kill_and_resume.py --kills 5 --tolerance 1e-4 sampler=vllm sampler.kv_cache_gib=0.25 \
    sampler.max_model_len=512

Equal means that every weight, all counts, every recorded answer with its reward and advantage, and the final
held-out reward are bit-identical, or equal within a tolerance if one is given. The moments are spread over
the whole life of the process, start-up included.
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
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint

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


def start(folder: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "herl",
        "fit",
        *SHORT,
        *overrides,
        f"hydra.run.dir={folder}",
        "resume=auto",
    ]
    log = (folder.parent / f"{folder.name}.log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def finish(folder: Path, overrides: list[str]) -> float:
    """Runs to the end, and returns the seconds it took."""
    started = time.perf_counter()
    if start(folder, overrides).wait() != 0:
        raise SystemExit((folder.parent / f"{folder.name}.log").read_text()[-4000:])
    return time.perf_counter() - started


def kill(folder: Path, overrides: list[str], seconds: float) -> bool:
    """Starts a run and kills all its processes after `seconds`. Returns False if it had ended by then."""
    process = start(folder, overrides)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def outcome(folder: Path) -> dict[str, Any]:
    """Returns the results of a run that are compared."""
    path = (folder / "checkpoints" / "last.ckpt").resolve()
    if path.is_dir():
        checkpoint = _load_distributed_checkpoint(path)
    else:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    records = [
        json.loads(line)
        for file in sorted((folder / "records").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    return {
        "weights": dict(checkpoint["state_dict"]),
        "counts": checkpoint["herl"]["counts"],
        "answers": [(r["id"], r["text"], r["reward"], r["advantage"]) for r in records],
        "heldout": json.loads((folder / "summary.json").read_text())["heldout_reward_after"],
    }


def same(expected: Any, got: Any, tolerance: float) -> bool:
    """Whether two outcomes are equal, bit for bit at a tolerance of 0."""
    if isinstance(expected, torch.Tensor):
        if tolerance == 0:
            return expected.numpy().tobytes() == got.numpy().tobytes()
        return torch.allclose(expected, got, rtol=tolerance, atol=tolerance)
    if isinstance(expected, dict):
        return expected.keys() == got.keys() and all(same(expected[k], got[k], tolerance) for k in expected)
    if isinstance(expected, list | tuple):
        return len(expected) == len(got) and all(map(same, expected, got, [tolerance] * len(got)))
    if isinstance(expected, float):
        return isinstance(got, float) and abs(expected - got) <= tolerance
    return bool(expected == got)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="overrides of herl fit")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=0.0)
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        seconds = finish(root / "whole", arguments.overrides)
        expected = outcome(root / "whole")
        for number in range(arguments.kills):
            folder, moment = root / f"killed-{number}", seconds * (number + rng.random()) / arguments.kills
            killed = kill(folder, arguments.overrides, moment)
            saved = sorted(path.name for path in folder.glob("checkpoints/*"))
            finish(folder, arguments.overrides)
            got = outcome(folder)
            wrong = [name for name in expected if not same(expected[name], got[name], arguments.tolerance)]
            found.append({"seconds": round(moment, 2), "killed": killed, "saved": saved, "wrong": wrong})
            print(f"{number + 1:3} killed after {moment:5.1f} of {seconds:.1f} s: "
                  f"{'differs in ' + ', '.join(wrong) if wrong else 'equal'}"
                  f"{'' if killed else ' (had ended by then)'}", flush=True)  # fmt: skip
    equal = sum(not run["wrong"] for run in found)
    print(f"{equal} of {len(found)} equal")
    if arguments.out:
        arguments.out.write_text(json.dumps({"seconds": seconds, "kills": found}, indent=2) + "\n")
    raise SystemExit(equal != len(found))


if __name__ == "__main__":
    main()
