"""Checks that `herl fit` runs here: the embedded experiment with both samplers, LoRA, FSDP, and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from gpu.bench import Bench

SHORT = (
    "trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.limit_val_batches=1",
    "trainer.val_check_interval=3", "data.prompts_per_batch=4", "rollout.attempts_per_prompt=4",
    "rollout.attempt.max_new_tokens=24", "module.schedule=constant",
)  # fmt: skip


def transformers(bench: Bench) -> None:
    """Section: a tenth of the embedded experiment, whose held-out reward must rise."""
    short = ("callbacks.answer_budget.answers=1024",) if bench.full else SHORT
    summary = _fit(bench, "transformers", *short)
    gain = summary["heldout_reward_after"] - summary["heldout_reward_before"]
    bench.add("transformers: held-out reward gained", gain, target=">= 0.05")


def vllm(bench: Bench) -> None:
    """Section: an engine next to the trainer, which sleeps during the update."""
    # a fixed size: the engine would take what other sections allocate meanwhile for its own
    choice = ("sampler.sleep=true", "sampler.kv_cache_gib=1") if bench.full else ()
    _fit(bench, "vllm", "sampler=vllm", "sampler.max_model_len=512", *choice, *SHORT)


def lora(bench: Bench) -> None:
    """Section: adapters, with a reference without them."""
    _fit(bench, "lora", "lora=lora", "loss.kl_coef=0.01", *SHORT)


def fsdp(bench: Bench) -> None:
    """Section: FSDP2 on one rank."""
    _fit(bench, "fsdp", "strategy=fsdp", *SHORT)


def resumed(bench: Bench) -> None:
    """Section: two epochs in one run against one epoch plus another from its checkpoint."""
    whole = _fit(bench, "whole", *SHORT, "trainer.max_epochs=2")
    _fit(bench, "half", *SHORT)
    last = bench.scratch / "runs" / "half" / "checkpoints" / "last.ckpt"
    rest = _fit(bench, "rest", *SHORT, "trainer.max_epochs=2", f"resume={last}")
    off = abs(whole["heldout_reward_after"] - rest["heldout_reward_after"])
    bench.add("resumed: held-out reward off the single run", off, target="<= 1e-6", anywhere=True)


def _fit(bench: Bench, name: str, *overrides: str) -> dict[str, float]:
    """Runs `herl fit`, reports its seconds and returns its summary. A failed run ends the section."""
    run = bench.scratch / "runs" / name
    device = "gpu" if bench.full else "cpu"
    settings = ["experiment=embedded", f"trainer.accelerator={device}", *overrides]
    command = [sys.executable, "-m", "herl", "fit", *settings]
    started = time.perf_counter()
    done = subprocess.run([*command, f"hydra.run.dir={run}"], capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n")
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
        bench.add(f"{name}: herl fit", f"failed: {last[-120:]}", target="== ran", anywhere=True)
        raise SystemExit(f"herl fit failed: {' '.join(command)}")
    bench.add(f"{name}: herl fit", "ran", target="== ran", anywhere=True)
    bench.add(f"{name}: its seconds, next to other sections", time.perf_counter() - started, "s")
    return dict(json.loads(Path(run / "summary.json").read_text()))
