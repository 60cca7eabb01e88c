"""Measures a whole GRPO step of herl and of TRL, with vLLM on the same GPU: seconds by phase, peak memory.

The engine of herl's run then shows what herl adds to it: starting one takes a minute, so there is no second.
"""

from __future__ import annotations

import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import step_vs_trl
import torch
from workload import median, peak_gib

from gpu.bench import Bench, settings
from gpu.models import folder
from gpu.sampling import engine
from herl.module import HerlModule
from herl.sampler.vllm import VLLMSampler

GIB = 2**30


def _arguments(bench: Bench) -> Namespace:
    """Returns the setting: 8 x 8 answers of 256 tokens. In both, vLLM gets .3 of the GPU."""
    return Namespace(
        model=folder(bench, "0.5b"),
        prompts=bench.size(8, 2),
        answers=bench.size(8, 2),
        new_tokens=bench.size(256, 8),
        words=bench.size(200, 12),
        context=bench.size(2048, 512),
        steps=bench.size(5, 1),
        micro_batch_tokens=bench.micro_batch_tokens or bench.size(16384, 512),
    )


def herl(bench: Bench) -> None:
    """Section: a step of herl, then its engine."""
    sampler = (
        VLLMSampler(dtype="bfloat16", gpu_memory_utilization=0.3)
        if bench.full
        else VLLMSampler(kv_cache_gib=0.1)
    )
    modules: list[HerlModule] = []
    with _card(bench):
        found = step_vs_trl.herl(_arguments(bench), sampler, after=modules.append, **settings())
    _report(bench, found["steps"])
    [module] = modules
    module.to(bench.device)  # at its end, a trainer moves the policy to the CPU
    engine(bench, sampler, module.policy, module.stages.tokenizer)
    sampler.close()


def trl(bench: Bench) -> None:
    """Section: a step of TRL."""
    vllm = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.3,
        "vllm_max_model_length": 2048,
    }
    choice: dict[str, Any] = {"bf16": True, **vllm} if bench.full else {"use_cpu": True, "bf16": False}
    with _card(bench):
        found = step_vs_trl.trl(_arguments(bench), **choice)
    _report(bench, found["steps"])


def _report(bench: Bench, steps: list[dict[str, float]]) -> None:
    for phase in steps[0]:
        bench.add(phase, median([step.get(phase, 0.0) for step in steps]), "s")


@contextmanager
def _card(bench: Bench) -> Iterator[None]:
    """Reports the GPU's peak memory within the block, including engine and graphs."""
    if not bench.full:
        yield
        bench.add("memory", peak_gib(), "GiB")
        return
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            free, whole = torch.cuda.mem_get_info()
            peak[0] = max(peak[0], (whole - free) / GIB)
            time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        bench.add("memory", peak[0], "GiB")
