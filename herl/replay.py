"""Stage 6: good answers of earlier batches join the group when their prompt returns.

`Replay` is the interface. `ReplayBuffer` keeps the best answers to each prompt; `NoReplay` keeps none. A
replayed answer costs no sampling and no judging. Selection and training treat it like a revision, with the
log-probs of the policy that sampled it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

from herl.errors import check_at_least
from herl.types import Judged, Member
from herl.types.plain import plain, restored


class Replay(ABC):
    """Keeps answers for the next time their prompt comes up."""

    needs_revisions: bool = False
    """True for a buffer that stays empty without hindsight."""

    @abstractmethod
    def recall(self, task_id: str, group_id: str) -> list[Judged]:
        """Returns the answers kept for a prompt, with origin "replay", as candidates for this group."""

    @abstractmethod
    def keep(self, task_id: str, members: Sequence[Member], answers: Sequence[Judged]) -> None:
        """Keeps the answers to a prompt that are worth keeping.

        Args:
            task_id: The prompt.
            members: The members of its group.
            answers: All its attempts and revisions in this batch; their rewards are never None.
        """

    def way_back(self) -> Callable[[], None]:
        """Returns a function that goes back to the present state, should a batch fail. Called before each
        batch: override it if `state_dict` is slow."""
        state = deepcopy(self.state_dict())
        return lambda: self.load_state_dict(state)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Returns the state a resumed run needs: mappings, lists, strings and numbers."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state, in place of the present one."""


class NoReplay(Replay):
    """Keeps nothing."""

    def recall(self, task_id: str, group_id: str) -> list[Judged]:
        """Returns an empty list."""
        return []

    def keep(self, task_id: str, members: Sequence[Member], answers: Sequence[Judged]) -> None:
        """Does nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Returns an empty dictionary."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Does nothing."""


@dataclass(frozen=True, slots=True)
class _Kept:
    judged: Judged
    uses: int = 0


class ReplayBuffer(Replay):
    """Keeps the best answers of each prompt until they have been recalled often enough.

    Args:
        of: Whether to keep the `revisions` that joined the group, or the `best` new answer of any kind.
        size: Maximum number of answers per prompt; the best stay. More than 1 matters only if `uses` is above
            1 too: a batch adds one answer per prompt, and a recall uses all of them.
        uses: Number of recalls before an answer is forgotten; None for no limit.
        max_prompts: Maximum number of prompts with answers; those not seen for longest are forgotten.
    """

    def __init__(
        self,
        of: Literal["revisions", "best"] = "revisions",
        size: int = 1,
        uses: int | None = 1,
        max_prompts: int = 4096,
    ) -> None:
        check_at_least("replay", 1, size=size, uses=uses, max_prompts=max_prompts)
        self.needs_revisions = of == "revisions"
        self.size = size
        self.uses = uses
        self.max_prompts = max_prompts
        self._kept: dict[str, tuple[_Kept, ...]] = {}

    def recall(self, task_id: str, group_id: str) -> list[Judged]:
        """Returns the kept answers to a prompt, best first, and counts one use of each."""
        kept = tuple(replace(one, uses=one.uses + 1) for one in self._kept.get(task_id, ()))
        found = [replace(one.judged, rollout=replace(one.judged.rollout, group_id=group_id)) for one in kept]
        if kept:
            self._kept[task_id] = tuple(one for one in kept if self.uses is None or one.uses < self.uses)
        return found

    def keep(self, task_id: str, members: Sequence[Member], answers: Sequence[Judged]) -> None:
        """Keeps new answers; recalled ones are not added again."""
        if self.needs_revisions:
            chosen = [member.judged for member in members if member.origin == "hindsight"]
        else:
            chosen = sorted(answers, key=attrgetter("reward"), reverse=True)[:1]
        kept = [*self._kept.pop(task_id, ()), *(_Kept(_replayed(judged)) for judged in chosen)]
        kept.sort(key=lambda one: one.judged.reward, reverse=True)
        if kept:
            self._kept[task_id] = tuple(kept[: self.size])  # now the newest
        if len(self._kept) > self.max_prompts:
            del self._kept[next(iter(self._kept))]

    def way_back(self) -> Callable[[], None]:
        """Returns a function that goes back to the present answers, of which nothing is copied."""
        kept = dict(self._kept)

        def go_back() -> None:
            self._kept = dict(kept)

        return go_back

    def state_dict(self) -> dict[str, Any]:
        """Returns the answers by prompt."""
        return {
            task_id: [{"uses": one.uses, "answer": plain(one.judged)} for one in kept]
            for task_id, kept in self._kept.items()
            if kept
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the answers."""
        self._kept = {task_id: tuple(map(_kept, kept)) for task_id, kept in state.items()}


def _replayed(judged: Judged) -> Judged:
    rollout = replace(judged.rollout, origin="replay", parent_id=None)
    return Judged(
        rollout=rollout, judgement=replace(judged.judgement, usage={})
    )  # its cost was already counted


def _kept(state: Mapping[str, Any]) -> _Kept:
    return _Kept(restored(state["answer"], {}), state["uses"])
