"""Stage 4: a judged group -> hindsight experience, as prompts for revisions.

`HindsightBuilder` is the interface. `RevisionBuilder` is HeRL's builder, `ToldBuilder` shows the rubric
alone, and `NoHindsight` gives plain RL. `herl.hindsight.candidates` chooses the attempts to revise,
`herl.hindsight.gate` the groups. A `herl.hindsight.teacher` needs no revisions: it scores the tokens of
attempts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from herl.types import Hindsight, Judged, Message, Task


class HindsightBuilder(ABC):
    """Chooses attempts to revise and writes their revision prompts."""

    revises: bool = True
    """False for a builder that never requests a revision."""

    needs_verdicts: bool = True
    """False for a builder that needs only rewards, so that judges without verdicts work too."""

    tells: bool = False
    """True for a builder whose prompts need no attempts. In training, `tell` replaces `build`, and its
    answers are sampled together with the attempts, without a second pass."""

    @abstractmethod
    def build(self, task: Task, group: Sequence[Judged]) -> list[Hindsight]:
        """Returns one `Hindsight` for each attempt to revise, or an empty list.

        Args:
            task: The prompt and its rubric.
            group: All attempts at it in this step. A reward of None means not judged: do not revise it.
        """

    def tell(self, task: Task) -> tuple[Message, ...] | None:
        """Returns the prompt of an answer to sample together with the attempts, as a conversation.

        None, the default, samples no such answer. Called only if `tells`.

        Args:
            task: The prompt and its rubric.
        """
        return None

    def begin_batch(self, progress: float) -> None:  # noqa: B027  # nothing to do is the right default
        """Called before each training batch. Does nothing by default.

        Args:
            progress: Share of the run that is done, in [0, 1]; the same on every rank.
        """

    def end_batch(self, groups: Sequence[Sequence[Judged]]) -> None:  # noqa: B027
        """Called when a training batch is sampled and judged, before the update on it; not in validations.
        After an error it gets no groups. Does nothing by default.

        A builder that learns from groups should do so here: `build` sees only its rank's groups, in the order
        in which they were judged.

        Args:
            groups: The attempts at each prompt of the batch; the same on every rank.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns the state a resumed run needs, in plain types; empty by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restores the result of `state_dict`, in place of the present state; may get an empty dictionary.
        Also called when a batch fails, to go back to the state before it. Does nothing by default."""


class NoHindsight(HindsightBuilder):
    """Never revises: plain policy-gradient RL."""

    revises = False
    needs_verdicts = False

    def build(self, task: Task, group: Sequence[Judged]) -> list[Hindsight]:
        """Returns an empty list."""
        return []


__all__ = ["HindsightBuilder", "NoHindsight"]
