"""Estimates the memory of a run on a CPU, in float32: simple formulas with measured constants.

    held      4 P weights, 4 P of a second model, 8 P t moments; DDP holds another 4 P t for its exchanges
    update    4 P t gradients; (A d + B f) L a token of a row for activations (recomputed: 23 d L, and one
              layer's); logits; three gradients of embeddings and head; what FSDP gathers
    sampling  4 P for packed weights; keys and values; 24 bytes a logit
    peak      held + the larger of update and sampling, or both with a batch drawn ahead, for every process

P parameters, of which the share t learns, L layers of width d with f inner units; the constants are below.
With FSDP each process holds its part of what is held and of the gradients, and `sampler=transformers` a whole
copy.
Left out: what a process takes before it loads a model, judges, and servers that a run starts.

The peaks of two updates were measured, minus the memory of the process before them. A table in
`tests/unit/update/test_cpu_memory.py` has them: SmolLM2-135M, Qwen2.5-0.5B and six layers of it. The formulas
are at most 10 % below and a third above, with one exception. Six layers of 0.5B, with recomputed activations
and 1830 tokens, took 9.3 GiB, by the formulas 5.6: blocks of half a GiB, the gradients of a head with a
vocabulary of 152 000, leave holes in the heap, which malloc keeps (`herl.models.malloc`). The same run took
4.8 with MALLOC_TRIM_THRESHOLD_=2147483647 and MALLOC_MMAP_THRESHOLD_=268435456.
Not measured: several processes, engines, other families.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from herl.update.gpu_cost import FLOAT32, GIB, ModelSize, Settings
from herl.update.logprobs import CHUNK_LOGITS, WHOLE_LOGITS

WIDTH_BYTES = 36
"""A: activation bytes per token and unit of a layer's width."""
INNER_BYTES = 16
"""B: activation bytes per token and unit of a layer's gated inner width."""
RECOMPUTED_BYTES = 23
"""Bytes per token and unit of a layer's width where activations are recomputed: 4 for the layer's input, the
rest for holes between blocks that were freed, as measured in long rows."""
ADAPTER_SHARE = 1.5
"""Activations with adapters in every linear layer, relative to those without."""
OUTER_COPIES = 3.0
"""Gradients of embeddings and head that exist beside the sum, in sizes of that weight: one from each end, and
one from the chunk of logits at hand."""
LOGIT_COPIES = 4
"""Tensors of a chunk's size while its statistics are computed."""
DRAW_BYTES = 24
"""Bytes per logit from which tokens are drawn."""
OTHER_GIB = 0.1
"""Memory of a process that grows with no size: what libraries allocate at the first pass."""
PROCESS_GIB = 0.6
"""Memory of a process besides tensors: Python, torch and other libraries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The sampling of one process, as far as memory is concerned."""

    held_copies: int = 0
    """Copies of all weights that the sampler keeps in float32: an engine's, or of a sharded policy."""
    held_gib: float = 0.0
    """Further memory that it keeps: an engine's keys and values."""
    packs: bool = False
    """Whether it copies the weights while it samples."""
    answers: int = 0
    """Answers at the same time, whose keys and values are in this process."""
    prompts: int = 0
    """Prompts that these answers share."""
    prompt_tokens: int = 0
    answer_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The processes of a run on this machine."""

    here: int = 1
    world_size: int = 1
    shards: int = 1
    """Processes among which FSDP divides weights, gradients and moments."""


def cpu_gib(
    model: ModelSize, row_tokens: float, settings: Settings, sampling: Sampling, processes: Processes
) -> dict[str, float]:
    """Returns the GiB at the peak of a run on a CPU, by use, of all its processes on this machine.

    Args:
        model: The model.
        row_tokens: Tokens of the longest row of an update; 0 for a run without updates.
        settings: The run's settings.
        sampling: What the sampler needs.
        processes: The processes that hold all this.
    """
    share = settings.trained_share if row_tokens else 0.0
    parts = processes.shards
    trained = share * model.parameters
    frozen = settings.frozen_bytes * (model.parameters - trained)
    held = {
        "weights": (FLOAT32 * trained + frozen) / parts,
        "reference": FLOAT32 * model.parameters * settings.second_model / parts,
        "moments": 2 * FLOAT32 * trained / parts,
        "sampler": FLOAT32 * model.parameters * sampling.held_copies + sampling.held_gib * GIB,
    }
    if processes.world_size > 1 and parts == 1:
        held["copies for DDP"] = FLOAT32 * trained
    update = _update(model, row_tokens, settings, trained / parts, gathers=parts > 1)
    drawn = _sampling(model, sampling, settings)
    both = Counter(update) + Counter(drawn)  # a batch drawn ahead is sampled during the update
    peak = both if settings.batches_ahead else max(update, drawn, key=lambda one: sum(one.values()))
    held["other"] = OTHER_GIB * GIB
    found = {name: held.get(name, 0.0) + peak.get(name, 0.0) for name in held | peak}
    if processes.here > 1:
        found["processes"] = PROCESS_GIB * GIB * (1 - 1 / processes.here)  # the first one runs already
    return {name: size * processes.here / GIB for name, size in found.items() if size}


def _update(
    model: ModelSize, row_tokens: float, settings: Settings, trained: float, *, gathers: bool
) -> dict[str, float]:
    if not row_tokens:
        return {}
    of_layer = float(WIDTH_BYTES * model.width + INNER_BYTES * model.inner)
    if settings.trained_share < 1.0:
        of_layer *= ADAPTER_SHARE
    kept = of_layer * model.layers
    if settings.checkpointing:
        kept = of_layer + RECOMPUTED_BYTES * model.width * model.layers
    logits = row_tokens * model.vocabulary
    if logits > WHOLE_LOGITS["cpu"]:
        logits = LOGIT_COPIES * CHUNK_LOGITS["cpu"]
    outer = OUTER_COPIES * FLOAT32 * model.outer * (settings.trained_share == 1.0)
    gathered = 0.0
    if gathers:
        weights = model.parameters if settings.keeps_gathered else model.outer + 2 * model.layer
        gradients = model.parameters if settings.whole_gradients else model.outer + 2 * model.layer
        gathered = FLOAT32 * (weights + settings.trained_share * gradients)
    return {
        "gradients": FLOAT32 * trained + outer + gathered,
        "activations": kept * row_tokens,
        "logits": FLOAT32 * logits,
    }


def _sampling(model: ModelSize, sampling: Sampling, settings: Settings) -> dict[str, float]:
    tokens = sampling.prompts * sampling.prompt_tokens + sampling.answers * sampling.answer_tokens
    keys = 2 * model.kv_bytes * tokens  # kv_bytes is of bfloat16
    drawn = DRAW_BYTES * sampling.answers * model.vocabulary
    packed = FLOAT32 * model.parameters * (1 - settings.quantized_share) * sampling.packs
    return {"sampler": packed + keys + drawn}
