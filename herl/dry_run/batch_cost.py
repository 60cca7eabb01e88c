"""Estimates the time of a batch on many GPUs, and says what binds: rough orders of magnitude.

refresh   2 P / W
sample    a token for R answers takes E + max((2 P + R k S) / (B b), 2 P R / (F u)), a prompt token
          2 P / (F u); until the last engine has finished, with the trial's lengths (`engines.py`)
exchange  90 ns T' / N to pack what a rank sends, 55 us A + 35 ns T' to unpack all answers, 300 A + 12 T'
          bytes over the network; only on several GPUs
plan      15 us A + 150 us N for groups, advantages and rows: every rank plans the whole batch
update    (6 P T + 6 L d T S) / (N F u), a third more for recomputed activations and for a reference's pass,
          and for old log-probs, where a batch makes several steps; at least the time of its weights' travel
weights   as FSDP: for each row, 2 P for each pass forward or backward, and 4 P of gradients, at the rate of
          the slowest link; between copies of the model, 8 P a copy's GPUs once a step

P parameters, L layers of width d, A answers of T' tokens, T trained tokens with their contexts, S mean tokens
of a sequence, k bytes of keys and values per token, N GPUs, each with F bfloat16 FLOP/s, B bytes/s and R
answers at once; the other constants are below. Rates of links are peaks of data sheets, and between nodes an
assumption.

Measured with `tools/bench/exchange.py` and `planning.py` (`tests/unit/dry_run/test_batch_cost.py` checks the
formulas against the points): exchange and memory on 1 to 8 ranks over gloo, planning for 1 to 1024 ranks.
They ran on two cores of an AMD EPYC that other programs used too, so the constants are from CPU seconds a
rank, medians of three; one rank exchanges nothing. Not measured: exchange on more than 8 ranks, between
machines or over NCCL, and the other phases on several GPUs.
"""

from __future__ import annotations

import math
from typing import Any

from herl.dry_run.engines import EngineSpeed, engine_seconds
from herl.errors import ConfigError
from herl.update.gpu_cost import BF16, FLOAT32, GIB, GPU, ModelSize, Settings, Work, batch_gib

FLOPS_SHARE = 0.4
"""u: share of peak FLOP/s that a transformer's large matrix products reach."""
BANDWIDTH_SHARE = 0.7
"""b: share of the memory's bandwidth that decoding reaches."""
ENGINE_SECONDS = 0.005
"""E: seconds of an engine step besides the GPU's work."""
REFRESH_BYTES = 20e9
"""W: bytes of weights per second that reach an engine."""
GPUS_OF_A_NODE = 8
NETWORK = 0.05
"""10^12 bytes per second that reach each GPU from other nodes: an assumption, a 400 Gbit/s card for each."""
PACK_TOKEN = 90e-9
"""CPU seconds of a rank for each token that it sends."""
UNPACK_ANSWER, UNPACK_TOKEN = 55e-6, 35e-9
"""CPU seconds of a rank for each answer of the batch that it receives, and for each of their tokens."""
SENT_ANSWER, SENT_TOKEN = 300, 12
"""Bytes of an answer on the way, and of each of its tokens with log-prob and text."""
HELD_ANSWER, HELD_TOKEN, HELD_OWN_TOKEN = 7200, 24, 37
"""Bytes of memory for an answer, for each of its tokens, and further for each token that the rank sends, at
the peak of an exchange."""
PLAN_ANSWER, PLAN_RANK = 15e-6, 1.5e-4
"""Seconds of planning for each answer of a batch, and for each rank among which rows are divided."""
FLAT = 0.9
"""Twice as many GPUs hardly help if a batch then takes more than this share of its time."""
HOLDS_UP = {
    "refresh": "the refresh",
    "sample": "the longest answer",
    "judge": "the judge",
    "environment": "the environment",
    "exchange": "the exchange of answers",
    "plan": "planning",
    "update": "the weights' travel",
}
"""What keeps a phase from getting shorter on more GPUs."""


def estimate(model: ModelSize, work: Work, settings: Settings, gpu: GPU, devices: int) -> dict[str, Any]:
    """Returns what a batch takes.

    "seconds" by phase; "weights_seconds", in which weights and gradients travel during the update; "idle",
    the share of the engines' time that passes without an answer while others sample; "gib" of one GPU by use;
    "host_gib", the memory of a process for the answers of all ranks; "fits".

    Raises:
        ConfigError: the GPUs cannot be divided among the engines.
    """
    if devices < 1 or devices % settings.tensor_parallel:
        raise ConfigError(
            f"cost.devices: expected a multiple of the {settings.tensor_parallel} GPUs of an engine, "
            f"got {devices}"
        )
    memory, slots = batch_gib(model, work, settings, gpu, devices)
    sample, idle = _sampling(model, work, settings, gpu, devices, slots)
    weights = weights_seconds(model, work, settings, gpu, devices)
    answers, tokens = work.answers, work.answer_tokens
    exchange = {"exchange": exchange_seconds(answers, tokens, devices)} if devices > 1 else {}
    environment = {"environment": work.environment_seconds} if work.environment_seconds else {}
    return {
        "seconds": {
            "refresh": BF16 * model.parameters / REFRESH_BYTES,
            "sample": sample,
            "judge": work.judge_seconds,
            **environment,
            **exchange,
            "plan": plan_seconds(answers, devices),
            "update": max(_computing(model, work, settings, gpu, devices), weights),
        },
        "weights_seconds": weights,
        "idle": idle,
        "gib": memory | {"of": gpu.gib},
        "host_gib": host_gib(answers, tokens, devices) if devices > 1 else 0.0,
        "fits": memory["total"] <= gpu.gib,
    }


def binding(model: ModelSize, work: Work, settings: Settings, gpu: GPU, devices: int) -> str:
    """Returns in words which phase is the longest, and which one keeps further GPUs from helping."""
    counts = [devices]
    while counts[0] % 2 == 0 and counts[0] // 2 % settings.tensor_parallel == 0:
        counts.insert(0, counts[0] // 2)
    seconds = [estimate(model, work, settings, gpu, count)["seconds"] for count in counts]
    longest = max(seconds[-1], key=lambda phase: seconds[-1][phase])
    words = f"{longest} binds ({100 * seconds[-1][longest] / sum(seconds[-1].values()):.0f} %)"
    for count, fewer, more in zip(counts, seconds, seconds[1:], strict=False):
        if sum(more.values()) > FLAT * sum(fewer.values()):
            flat = [phase for phase in more if more[phase] > FLAT * fewer.get(phase, 0.0)]
            holds_up = max(flat, key=lambda phase: more[phase])
            return f"{words}; beyond {count} GPU{'s' * (count > 1)} {HOLDS_UP[holds_up]}"
    return words


def exchange_seconds(answers: int, tokens: int, ranks: int) -> float:
    """Returns the seconds in which a rank exchanges its answers with the others.

    Args:
        answers: Answers of all ranks.
        tokens: Their tokens.
        ranks: Number of ranks, at least 2.
    """
    computing = PACK_TOKEN * tokens / ranks + UNPACK_ANSWER * answers + UNPACK_TOKEN * tokens
    return computing + exchange_bytes(answers, tokens) / (NETWORK * 1e12)


def exchange_bytes(answers: int, tokens: int) -> float:
    """Returns the bytes that each rank receives."""
    return SENT_ANSWER * answers + SENT_TOKEN * tokens


def plan_seconds(answers: int, ranks: int) -> float:
    """Returns the CPU seconds in which every rank plans a batch, from judged answers to its first row."""
    return PLAN_ANSWER * answers + PLAN_RANK * ranks


def host_gib(answers: int, tokens: int, ranks: int) -> float:
    """Returns the memory of a process for the answers of all ranks, at the peak of their exchange."""
    return (HELD_ANSWER * answers + HELD_TOKEN * tokens + HELD_OWN_TOKEN * tokens / ranks) / GIB


def weights_seconds(model: ModelSize, work: Work, settings: Settings, gpu: GPU, devices: int) -> float:
    """Returns the seconds in which weights and gradients travel between GPUs during the update of a batch."""
    shards = min(devices, settings.shards or devices)
    copies = devices // shards
    steps = settings.updates_per_batch
    rows = max(steps, math.ceil(work.trained_tokens / (devices * max(1.0, work.micro_batch_tokens))))
    gathers = _forward_passes(settings) + (not settings.keeps_gathered)
    gradients = FLOAT32 * settings.trained_share * model.parameters
    summed = gradients * (steps if settings.whole_gradients else rows)
    within = (BF16 * model.parameters * gathers * rows + summed) * (1 - 1 / shards)
    between = 2 * gradients / shards * steps * (1 - 1 / copies)
    one_node = devices <= GPUS_OF_A_NODE
    # All cards of a node take part in what a copy's GPUs gather; each GPU sums its own shard.
    rate = gpu.link if shards <= GPUS_OF_A_NODE else min(gpu.link, GPUS_OF_A_NODE * NETWORK)
    return within / (rate * 1e12) + between / ((gpu.link if one_node else min(gpu.link, NETWORK)) * 1e12)


def _forward_passes(settings: Settings) -> float:
    old_logprobs = 1 - 1 / settings.updates_per_batch  # the first step's are the current ones
    return 1 + settings.reference + settings.entropy_pass + old_logprobs


def _computing(model: ModelSize, work: Work, settings: Settings, gpu: GPU, devices: int) -> float:
    length = work.trained_tokens / max(1, work.answers)
    forward = 2 * (model.parameters + model.layers * model.width * length) * work.trained_tokens
    passes = _forward_passes(settings) + 2 + settings.checkpointing
    return passes * forward / (devices * gpu.tflops * 1e12 * FLOPS_SHARE)


def _sampling(
    model: ModelSize, work: Work, settings: Settings, gpu: GPU, devices: int, slots: float
) -> tuple[float, float]:
    """Returns the seconds until all engines have finished all rounds, and the share that they idle."""
    engines, width = devices // settings.tensor_parallel, settings.tensor_parallel
    flops, bandwidth = width * gpu.tflops * 1e12 * FLOPS_SHARE, width * gpu.bandwidth * 1e12 * BANDWIDTH_SHARE
    of_answer = model.kv_bytes * work.kept_tokens

    def step_seconds(running: int) -> float:
        read = (BF16 * model.parameters + running * of_answer) / bandwidth
        return ENGINE_SECONDS + max(read, 2 * model.parameters * running / flops)

    of_prompt = work.prompt_tokens / max(1, len(work.asked))
    speed = EngineSpeed(
        step_seconds=step_seconds,
        prompt_seconds=2 * model.parameters * of_prompt / flops,
        slots=int(slots),
    )
    rounds = [engine_seconds(one, engines, speed, whole_groups=settings.whole_groups) for one in work.rounds]
    total = sum(map(max, rounds))
    return total, 1 - sum(map(sum, rounds)) / (engines * total) if total else 0.0
