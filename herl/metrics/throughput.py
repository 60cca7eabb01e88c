"""How fast a step was, and how much memory it took."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping

import torch

from herl.experience import Collection

GIB = 1 << 30


def throughput_metrics(collection: Collection, seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the step's seconds by phase, its rates, and this process's peak memory so far.

    Args:
        collection: What was sampled in the step.
        seconds: Wall time of the step by phase, with the refresh before it.
    """
    answers = [one for group in collection.groups for one in (*group.attempts, *group.revisions)]
    sampled = sum(len(one.rollout.token_ids) for one in answers)
    trained = sum(len(e.rollout.token_ids) for e in collection.experiences)
    total = sum(seconds.values())
    sampling = seconds.get("sample", 0.0) + seconds.get("revise", 0.0)
    rates = {
        "throughput/answers_per_second": (len(answers), total),
        "throughput/sampled_tokens_per_second": (sampled, sampling),
        "throughput/trained_tokens_per_second": (trained, seconds.get("update", 0.0)),
    }
    numbers = {f"time/{phase}": spent for phase, spent in seconds.items()}
    numbers |= {name: count / spent for name, (count, spent) in rates.items() if spent > 0}
    return numbers | {"time/step": total} | memory()


def memory() -> dict[str, float]:
    """Returns the peak memory of this process so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    numbers = {"throughput/memory_gib": peak / GIB}
    if torch.cuda.is_available():
        numbers["throughput/gpu_memory_gib"] = torch.cuda.max_memory_allocated() / GIB
    return numbers
