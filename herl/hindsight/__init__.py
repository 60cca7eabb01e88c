"""Stage 4: a judged group -> hindsight experience, as prompts for revisions.

`HindsightBuilder` is the interface. `RevisionBuilder` is the method's own; `NoHindsight` leaves plain RL.
Which attempts are revised is a function of `herl.hindsight.candidates`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from herl.types import Hindsight, Judged, Task


class HindsightBuilder(ABC):
    """Chooses attempts to revise and writes the prompts of their revisions."""

    revises: bool = True
    """False for a builder that never asks for a revision."""

    needs_verdicts: bool = True
    """False for a builder that can do with rewards alone: judges without verdicts then will do, too."""

    @abstractmethod
    def build(self, task: Task, group: Sequence[Judged]) -> list[Hindsight]:
        """Returns one `Hindsight` per attempt to revise; an empty list if none should be.

        Args:
            task: The prompt and its rubric.
            group: All attempts at it in this step. A reward of None means not judged: do not revise.
        """


class NoHindsight(HindsightBuilder):
    """Never revises: plain policy-gradient RL."""

    revises = False
    needs_verdicts = False

    def build(self, task: Task, group: Sequence[Judged]) -> list[Hindsight]:
        """Returns an empty list."""
        return []


__all__ = ["HindsightBuilder", "NoHindsight"]
