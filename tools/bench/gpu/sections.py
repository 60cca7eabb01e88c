"""The sections of the table in the order of measurement, the most important first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Section:
    """A measurement, made by a function of one of the modules here."""

    name: str
    module: str
    function: str
    arguments: tuple[str, ...] = ()
    limit: float
    """Seconds."""
    needs: tuple[str, ...] = ()
    """Packages that some installations of herl lack."""


BESIDE = (
    Section(name="models", module="models", function="write", limit=90),
    Section(name="rows", module="rows", function="right", limit=150),
    Section(name="lengths", module="updates", function="lengths", limit=150),
    Section(name="fit-transformers", module="runs", function="transformers", limit=150),
    Section(name="fit-vllm", module="runs", function="vllm", limit=190, needs=("vllm",)),
    Section(name="fit-lora", module="runs", function="lora", limit=150, needs=("peft",)),
    Section(name="fit-fsdp", module="runs", function="fsdp", limit=150),
    Section(name="fit-resumed", module="runs", function="resumed", limit=190),
)
"""Run side by side, since nothing in them is timed but the seconds that a user waits."""

ALONE = (
    Section(name="update-0.5b", module="updates", function="share", arguments=("0.5b", ">= 0.4"), limit=110),
    Section(name="step-herl", module="steps", function="herl", limit=270, needs=("vllm",)),
    Section(name="step-trl", module="steps", function="trl", limit=220, needs=("trl", "vllm")),
    Section(name="sampler", module="sampling", function="in_process", limit=60),
    Section(name="update-1.5b", module="updates", function="share", arguments=("1.5b", ">= 0.5"), limit=110),
    Section(
        name="update-7b", module="updates", function="share", arguments=("7b, 8 layers", ">= 0.55"), limit=110
    ),
    Section(name="sharing", module="updates", function="sharing", limit=90),
)
"""Run one after another, each alone on the GPU.

On an H100 with nothing compiled in its caches, an engine starts in 90 to 120 seconds, and the first update of
a 0.5B model takes 60 more.
"""

SECTIONS = (*BESIDE, *ALONE)

RATIOS = (
    ("time of a step, herl over TRL", "step", "<= 0.6"),
    ("memory of the GPU, herl over TRL", "memory", "<= 1.0"),
)
"""Name, figure of both step sections, target."""
