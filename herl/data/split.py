"""Splits prompts into those to train on and those to hold out.

A prompt is held out if its hash is below the share. So each prompt is chosen on its own: adding or removing
rows, or another order of them, never moves a prompt that was trained on to the held-out ones. Of few prompts
at least one is held out, the one with the smallest hash, and at least one is trained on. Rows whose prompts
differ only in the white space around them, or in how Unicode composes their letters, stay together.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence

from herl.data.view import TaskView
from herl.errors import ConfigError, DataError
from herl.seeds import derive_seed
from herl.types import Task


class Part(TaskView):
    """Some of the tasks of a data set.

    Args:
        tasks: All tasks.
        places: Indices of those in the part.
    """

    def __init__(self, tasks: Sequence[Task], places: Sequence[int]) -> None:
        super().__init__(places, tasks)
        self._tasks = tasks

    def _task(self, place: int) -> Task:
        return self._tasks[place]


def check_any(train: Sequence[Task], heldout: Sequence[Task]) -> None:
    """Checks that there are training prompts, and held-out prompts if a file of them was named: training
    prompts must not take their place.

    Raises:
        DataError: names the part without prompts, and its file.
    """
    for name, tasks, needed in (("train", train, True), ("heldout", heldout, False)):
        path = getattr(tasks, "path", "")
        if not tasks and (needed or path):
            place = f" from {path}" if path else ""
            raise DataError(f"data.{name}: expected at least one prompt, got none{place}")


def split_off(tasks: Sequence[Task], share: float, seed: int) -> tuple[Part, Part]:
    """Returns tasks to train on, and tasks to hold out; tasks with the same prompt are in the same part.

    Args:
        tasks: All tasks.
        share: Probability, in [0, 1), that a prompt is held out.
        seed: Seed of the choice.

    Raises:
        ConfigError: the share is not one, or there are too few prompts to hold one out.
    """
    if not 0.0 <= share < 1.0:
        raise ConfigError(f"data.heldout_share: expected a share in [0, 1), got {share}")
    places = [derive_seed(seed, prompt_hash(task)) / 2**63 for task in tasks]  # in [0, 1)
    different = set(places)
    if len(different) < 2:
        raise ConfigError(
            f"data.heldout_share: expected at least two prompts to hold out a share of {share}, got "
            f"{len(different)}: add rows, name data.heldout.path, or set data.heldout_share=0"
        )
    smallest, largest = min(different), max(different)
    parts: tuple[list[int], list[int]] = ([], [])
    for number, place in enumerate(places):
        parts[place == smallest or (place < share and place != largest)].append(number)
    return Part(tasks, parts[0]), Part(tasks, parts[1])


def prompt_hash(task: Task) -> int:
    """Returns a hash of a task's prompt in [0, 2**63), the same for prompts that count as equal."""
    messages = [{name: _normal(text) for name, text in message.items()} for message in task.messages]
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _normal(text: object) -> object:
    return unicodedata.normalize("NFC", text).strip() if isinstance(text, str) else text
