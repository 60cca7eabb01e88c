"""Further prompts for a batch: they replace groups without signal (dynamic sampling, DAPO, arXiv:2503.14476).

Which prompts are drawn is a hash of the batch, so neither ranks nor a resume change it, and nothing needs to
be saved. An epoch sees its own prompts as often as without a refill; further ones come on top.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol, cast, runtime_checkable

from herl.distributed import together
from herl.errors import ConfigError
from herl.seeds import derive_seed
from herl.types import Task


@runtime_checkable
class Prompts(Protocol):
    """Where further prompts come from, such as `herl.data.RubricDataModule`."""

    def further(self, count: int, seed: int, without: Container[str]) -> Sequence[Task]:
        """Returns at most `count` different training prompts, the same ones for the same arguments.

        Args:
            count: Prompts wanted.
            seed: All randomness is a hash of it.
            without: Ids of prompts that are not to be drawn.
        """
        ...


class Refill:
    """Draws further prompts in the run's data, which is known once the run begins."""

    def __init__(self) -> None:
        self._prompts: Prompts | None = None

    def pin(self, prompts: object, rounds: int, *, trains: bool = True) -> None:
        """Sets where prompts come from.

        Args:
            prompts: The run's data module, if it has one.
            rounds: `RolloutPlan.refill`.
            trains: Whether training batches will be drawn there.

        Raises:
            ConfigError: prompts will be asked for, and cannot be drawn from there, or every batch has all.
        """
        batch = getattr(prompts, "prompts_per_batch", 0)
        if rounds and trains and batch and batch >= len(train := getattr(prompts, "train", ())):
            raise ConfigError(
                f"rollout.refill: expected more training prompts than data.prompts_per_batch = {batch}, "
                f"so that some are left, got {len(train)}: use rollout.refill=0, or smaller batches"
            )
        if isinstance(prompts, Prompts):
            self._prompts = prompts
        elif rounds:
            raise ConfigError(
                "rollout.refill: expected a data module with a method `further`, such as RubricDataModule, "
                f"got {type(prompts).__name__}: use rollout.refill=0"
            )

    def draw(self, count: int, key: Sequence[int | str], without: Container[str]) -> list[Task]:
        """Returns at most `count` further prompts. All ranks must call it.

        Args:
            count: Prompts wanted.
            key: Identifies the batch and the round.
            without: Ids of the prompts that the batch has already.
        """
        prompts = cast(Prompts, self._prompts)
        return list(together(lambda: prompts.further(count, derive_seed(*key, "refill"), without)))
