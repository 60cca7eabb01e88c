"""Stage 4: a judged group -> hindsight experience, as prompts for revisions.

`HindsightBuilder` is the interface. `RevisionBuilder` is the method's own; `NoHindsight` leaves plain RL.
Which attempts are revised is a function of `herl.hindsight.candidates`, which groups are a matter of
`herl.hindsight.gate`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

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

    def begin_batch(self, progress: float) -> None:  # noqa: B027  # nothing to do is the right default
        """Is called before each training batch. Does nothing by default.

        Args:
            progress: How much of the run is done, in [0, 1]; the same on every rank.
        """

    def end_batch(self, groups: Sequence[Sequence[Judged]]) -> None:  # noqa: B027
        """Is called after each training batch, and not after validations. Does nothing by default.

        A builder that learns from groups learns here: `build` sees those of its own rank alone, in the order
        in which they were judged.

        Args:
            groups: The attempts at each prompt of the batch; the same on every rank.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, in plain types; empty by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Takes back what `state_dict` returned, or an empty dictionary. Does nothing by default."""


class NoHindsight(HindsightBuilder):
    """Never revises: plain policy-gradient RL."""

    revises = False
    needs_verdicts = False

    def build(self, task: Task, group: Sequence[Judged]) -> list[Hindsight]:
        """Returns an empty list."""
        return []


__all__ = ["HindsightBuilder", "NoHindsight"]
