"""The setting of a section: its device, sizes, folder, and a place for its figures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of the table."""

    section: str
    name: str
    value: float | str
    unit: str = ""
    target: str = ""
    """Such as "<= 1e-5" or "== shared"; "" for no target."""
    anywhere: bool = False
    """Whether the target also holds at a small size on a CPU: it is about correctness, not speed."""

    def verdict(self, on_gpu: bool) -> str:
        """Returns met, MISSED, or why there is no verdict."""
        if not self.target:
            return ""
        if not on_gpu and not self.anywhere:
            return "not measured on a GPU"
        relation, _, limit = self.target.partition(" ")
        if relation == "==":
            met = str(self.value) == limit
        else:
            value = float(self.value)
            met = value <= float(limit) if relation == "<=" else value >= float(limit)
        return "met" if met else "MISSED"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The setting of a section."""

    section: str
    device: torch.device
    scratch: Path
    """Folder that all sections of this call share."""
    tokenizer: str
    """Model or folder that provides the tokenizer."""
    micro_batch_tokens: int | None = None
    """The module's setting; None for herl's default."""

    @property
    def full(self) -> bool:
        """Whether sizes are real rather than small."""
        return self.device.type == "cuda"

    def size(self, full: int, small: int) -> int:
        """Returns a size for this device."""
        return full if self.full else small

    def add(
        self, name: str, value: float | str, unit: str = "", target: str = "", *, anywhere: bool = False
    ) -> None:
        """Writes a figure to disk immediately, so that it survives if the section is killed later."""
        found = Figure(
            section=self.section, name=name, value=value, unit=unit, target=target, anywhere=anywhere
        )
        with figures_file(self.scratch, self.section).open("a") as file:
            file.write(json.dumps(asdict(found)) + "\n")

    def autocast(self) -> torch.autocast:
        """Returns Lightning's bf16-mixed autocast on a GPU, and a disabled one on a CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.full, cache_enabled=False)


def figures_file(scratch: Path, section: str) -> Path:
    """Returns the file of a section's figures."""
    return scratch / f"{section}.jsonl"


def figures_of(scratch: Path, section: str) -> list[Figure]:
    """Returns the figures that a section has written."""
    path = figures_file(scratch, section)
    return [Figure(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def settings() -> dict[str, object]:
    """Returns the arguments of a benchmark's Lightning trainer on this machine."""
    cuda = torch.cuda.is_available()
    return {
        "accelerator": "gpu" if cuda else "cpu",
        "devices": 1,
        "precision": "bf16-mixed" if cuda else "32-true",
        "max_epochs": 1,
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "inference_mode": False,
        "use_distributed_sampler": False,
    }
