"""The speed and memory use of a step."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from herl.distributed import gather, world_size
from herl.models.quantized import elements
from herl.rollout.collect import Collection
from herl.types import Experience
from herl.update.gpu_cost import gpu_of

GIB = 1 << 30


def resource_metrics(
    policy: PreTrainedModel, collection: Collection, seconds: Mapping[str, float]
) -> dict[str, float]:
    """Returns times, rates and memory of a step, with memory from the rank that used the most. All ranks must
    call it. See `throughput_metrics` and `utilization`."""
    own = throughput_metrics(collection, seconds) | utilization(policy, collection, seconds)
    return own | {name: max(gather(value)) for name, value in own.items() if name.endswith("_gib")}


def throughput_metrics(collection: Collection, seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the step's seconds by phase, its rates, and this process's peak memory so far.

    Args:
        collection: The step's groups and experiences.
        seconds: Wall time of the step by phase, including the refresh before it. The phases of a batch that
            was drawn ahead are added, but not to the total.
    """
    answers = [one for group in collection.groups for one in (*group.attempts, *group.revisions)]
    sampled = sum(len(one.rollout.token_ids) for one in answers)
    trained = sum(len(e.rollout.token_ids) for e in collection.experiences)
    total = sum(seconds.values())
    beside = collection.beside  # passed during the step before, so not in the total
    phases = {name: seconds.get(name, 0.0) + beside.get(name, 0.0) for name in (*seconds, *beside)}
    sampling = phases.get("sample", 0.0) + phases.get("revise", 0.0)
    rates = {
        "throughput/answers_per_second": (len(answers), total),
        "throughput/sampled_tokens_per_second": (sampled, sampling),
        "throughput/trained_tokens_per_second": (trained, seconds.get("update", 0.0)),
    }
    numbers = {f"time/{phase}": spent for phase, spent in phases.items()}
    numbers |= {name: count / spent for name, (count, spent) in rates.items() if spent > 0}
    return numbers | {"time/step": total} | memory()


def utilization(
    policy: PreTrainedModel, collection: Collection, seconds: Mapping[str, float]
) -> dict[str, float]:
    """Returns how well the step used its devices: answer tokens per second per device and, on a GPU with a
    known peak (`herl.update.gpu_cost.GPUS`), the model FLOPs of the update as a share of that peak.

    FLOPs are those of matrix products with the weights: 6 per token for a trained weight, 4 for a frozen one.
    Each context counts once for all its answers, and the head counts for answers only. Attention and
    recomputation do not count.

    Args:
        policy: The trained model.
        collection: The step's groups and experiences.
        seconds: Wall time of the step by phase.
    """
    answers = [one for group in collection.groups for one in (*group.attempts, *group.revisions)]
    sampled = sum(len(one.rollout.token_ids) for one in answers)
    total, update = sum(seconds.values()), seconds.get("update", 0.0)
    metrics = {"throughput/tokens_per_second_per_gpu": sampled / total / world_size()} if total else {}
    gpu = gpu_of(policy.device)
    if gpu is not None and update:
        share = trained_flops(policy, collection.experiences) / (update * world_size() * gpu.tflops * 1e12)
        metrics["throughput/mfu"] = share
    return metrics


def trained_flops(policy: PreTrainedModel, experiences: Sequence[Experience]) -> float:
    """Returns the FLOPs of one forward and backward pass over experiences; see `utilization`."""
    head, embeddings = policy.get_output_embeddings().weight, policy.get_input_embeddings().weight
    experts_seen: int = getattr(policy.config.get_text_config(), "num_experts_per_tok", None) or 0
    of_body = 0.0
    for parameter in policy.parameters():
        if parameter is not embeddings and parameter is not head:
            # experts share one tensor, [experts, ...], and each token uses some of them
            in_experts = experts_seen and parameter.dim() == 3
            share = experts_seen / parameter.shape[0] if in_experts else 1.0
            of_body += _flops_of(parameter) * share
    answer_tokens = sum(len(one.rollout.token_ids) for one in experiences)
    row_tokens = sum(one.rollout.length for one in experiences)
    contexts = {one.context_ids for one in experiences}
    return of_body * (row_tokens + sum(map(len, contexts))) + _flops_of(head) * answer_tokens


def _flops_of(weight: torch.Tensor) -> int:
    return (6 if weight.requires_grad else 4) * elements(weight)


def memory() -> dict[str, float]:
    """Returns the peak memory of this process so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    numbers = {"throughput/memory_gib": peak / GIB}
    if torch.cuda.is_available():
        numbers["throughput/gpu_memory_gib"] = torch.cuda.max_memory_allocated() / GIB
    return numbers
