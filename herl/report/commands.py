"""The commands that go on from a run, as the screen, the banner and report.html show them."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command that can be copied into a shell."""

    name: str
    """One word for the screen."""
    purpose: str
    line: str


def from_here(path: Path) -> str:
    """Returns a path for a command line: relative if it is below the current one, and quoted if need be."""
    below = path.resolve().is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(path) if below else str(path.absolute()))


def curves(folder: Path) -> str:
    """Returns the command that shows a run's curves."""
    return f"tensorboard --logdir {from_here(folder)}"


def commands(folder: Path, optimizer_steps: int | None) -> list[Command]:
    """Returns what can be done with a run.

    Args:
        folder: The run's folder.
        optimizer_steps: Steps that it took; None if it was no training run.
    """
    name = from_here(folder)
    answers = any(folder.glob("records/*.jsonl")) or (folder / "answers.jsonl").is_file()
    model = bool(optimizer_steps) and (folder / "checkpoints").is_dir()
    known = [
        ("Answers", "Read its answers", f"herl inspect {name}", answers),
        ("Curves", "See all curves", curves(folder), (folder / "tensorboard").is_dir()),
        ("Validate", "Measure it again", f"herl validate run={name}", model),
        ("Export", "Use the model", f"herl export run={name} out=my_model", model),
        ("Compare", "Compare it", f"herl compare {name} OTHER_RUN", optimizer_steps is not None),
    ]
    return [Command(name=short, purpose=why, line=line) for short, why, line, works in known if works]
