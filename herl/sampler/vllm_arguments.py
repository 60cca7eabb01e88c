"""Arguments that a run sets for a vLLM engine next to its trainer: its GPU, length, dtype and share of the
memory; and those of each request.

The share is the smaller of two amounts:

    room    the memory left by the trainer: all but its weights and moments if the engine sleeps during the
            update, all but the peak of the update otherwise
    wanted  the engine's weights, its working memory, and keys and values of all answers at their longest
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from herl.distributed import gather
from herl.errors import ConfigError
from herl.sampler import CardNeeds, RunLimits
from herl.seeds import derive_seed
from herl.types import SampleRequest, Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams

GIB = 2**30
JUDGE_SHARE = 0.4
"""Share of a GPU's memory for an engine that belongs to no run, as in a judge."""
WORKSPACE_GIB = 3.0
"""Memory of an engine besides weights, keys and values: activations of a step, CUDA graphs."""
SPARE_GIB = 2.0
"""Memory left for the CUDA context, fragmentation, and layers gathered for a refresh."""
MAX_SHARE = 0.95
"""Largest share of a GPU's memory that an engine may use."""
MEMORY_SIGNS = ("out of memory", "gpu_memory_utilization", "gpu memory utilization", "kv cache")
"""Phrases that mark an engine's error as one about memory."""


def run_arguments(
    limits: RunLimits | None, given: Mapping[str, Any], *, on_cpu: bool, sleeps: bool
) -> dict[str, Any]:
    """Returns the arguments of vllm.LLM that the user has not given. All ranks must call it.

    Args:
        limits: The run's limits; None for an engine outside a run, such as a judge's.
        given: The user's arguments, with max_num_seqs and tensor_parallel_size.
        on_cpu: Whether the engine computes on a CPU.
        sleeps: Whether it frees its memory during the update.

    Raises:
        ConfigError: the trainer leaves the engine too little memory.
    """
    dtype = torch.float32 if on_cpu else limits.dtype if limits else torch.bfloat16
    found: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch.")}
    if limits is not None:
        found["max_model_len"] = limits.longest_tokens
    if on_cpu or "gpu_memory_utilization" in given:
        return found
    if limits is None or limits.card is None:
        return found | {"gpu_memory_utilization": JUDGE_SHARE}
    free, total = torch.cuda.mem_get_info()
    # the same on all ranks, so that all take the same share or all fail
    others, total = max(gather(total - free - torch.cuda.memory_reserved())), min(gather(total))
    chosen = found | dict(given)
    share = share_of_card(
        limits.card,
        total_gib=total / GIB,
        others_gib=others / GIB,
        sleeps=sleeps,
        weight_bytes=4 if chosen["dtype"] in ("float32", "float") else 2,
        tensor_parallel=chosen["tensor_parallel_size"],
        longest_tokens=chosen["max_model_len"],
        max_at_once=chosen["max_num_seqs"],
    )
    return found | {"gpu_memory_utilization": share}


def draw_arguments(sampling: Sampling) -> dict[str, Any]:
    """Returns the settings of a distribution under vLLM's names, which servers share with the engine.

    All are named, or a server would take what is missing from the model's generation config.
    """
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }


def sampling_params(request: SampleRequest, index: int, end_ids: Iterable[int]) -> SamplingParams:
    """Returns the engine's settings for answer `index` to a request.

    The engine has no tokenizer, so its caller looks for stop strings: it gets the answer after every step.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    # FINAL_ONLY where it will do, since otherwise every step copies all answers so far
    kind = RequestOutputKind.CUMULATIVE if request.sampling.stop else RequestOutputKind.FINAL_ONLY
    return SamplingParams(
        **draw_arguments(request.sampling),
        max_tokens=request.sampling.max_new_tokens,
        # The engine seeds n answers consecutively, which would repeat the noise in the next prompt.
        seed=derive_seed(request.seed, index),
        stop_token_ids=sorted(end_ids),
        logprobs=0,  # only of the sampled token
        detokenize=False,
        output_kind=kind,
    )


def share_of_card(
    needs: CardNeeds,
    *,
    total_gib: float,
    others_gib: float,
    sleeps: bool,
    weight_bytes: int,
    tensor_parallel: int,
    longest_tokens: int,
    max_at_once: int,
) -> float:
    """Returns the share of a GPU's memory that an engine may take, in (0, 1).

    Args:
        needs: The memory needs of the model and the trainer.
        total_gib: Memory of the GPU.
        others_gib: Memory that other processes use already.
        sleeps: Whether the engine frees its memory during the update.
        weight_bytes: Bytes per weight of the engine.
        tensor_parallel: GPUs per engine.
        longest_tokens: Most tokens of a prompt with its answer.
        max_at_once: Answers that the engine works on at the same time.

    Raises:
        ConfigError: there is too little room for the engine's weights and one answer; says what to change.
    """
    trainer_gib = needs.resident_gib if sleeps else needs.update_gib
    room = total_gib - others_gib - trainer_gib - SPARE_GIB
    weights = weight_bytes * needs.parameters / tensor_parallel / GIB
    answer = longest_tokens * needs.kv_bytes * weight_bytes / 2 / tensor_parallel / GIB
    least = weights + WORKSPACE_GIB + answer
    if room < least:
        taken = f", other processes use {others_gib:.1f}" if others_gib >= 1 else ""
        sleep = "" if sleeps else "sampler.sleep=true, model.gradient_checkpointing=true, "
        raise ConfigError(
            f"sampler: expected {least:.1f} GiB for an engine next to the trainer, got {max(0.0, room):.1f}: "
            f"of the GPU's {total_gib:.1f} GiB the trainer needs about {trainer_gib:.1f}{taken}. Try {sleep}"
            "strategy=fsdp on more GPUs, lora=lora, sampler.tensor_parallel_size=2, or lower "
            "module.micro_batch_tokens or rollout.max_prompt_tokens. Setting sampler.gpu_memory_utilization "
            "skips this check"
        )
    return min(room, least + answer * (max_at_once - 1), MAX_SHARE * total_gib) / total_gib


def memory_complaint(error: Exception) -> str | None:
    """Returns a sentence that says what to change if the engine's error is about memory, or else None."""
    text = str(error)
    if not any(sign in text.lower() for sign in MEMORY_SIGNS):
        return None
    first = text.strip().partition(". ")[0].rstrip(".")
    return (
        f"the vLLM engine does not fit in memory ({first}): raise sampler.gpu_memory_utilization or "
        "sampler.kv_cache_gib if the engine needs more, lower them if the GPU has no more, or lower "
        "rollout.max_prompt_tokens and max_new_tokens"
    )


def check_device() -> None:
    """Checks that a single process trains on the first visible GPU, which vLLM will use.

    Raises:
        ConfigError: it trains on another one.
    """
    if (device := torch.cuda.current_device()) != 0:
        raise ConfigError(
            f"trainer.devices: expected the first visible GPU, which vLLM uses, got GPU {device}; select one "
            "with CUDA_VISIBLE_DEVICES"
        )


@contextmanager
def local_rank(device_type: str) -> Iterator[None]:
    """Within the block, LOCAL_RANK is the GPU that vLLM is to use: that of the trainer.

    The two differ where each process sees one GPU alone, as under SLURM, and with `trainer.devices=[2,3]`.
    """
    before = os.environ.get("LOCAL_RANK")
    own = before or os.environ.get("SLURM_LOCALID", "0")
    os.environ["LOCAL_RANK"] = str(torch.cuda.current_device()) if device_type == "cuda" else own
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before
