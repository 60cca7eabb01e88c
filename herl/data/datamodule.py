"""Streams prompts with their rubrics. A batch is a list of tasks; nothing is tokenised here."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Sampler

from herl.errors import ConfigError, DataError
from herl.seeds import derive_seed
from herl.types import Task


class RubricDataModule(L.LightningDataModule):
    """Training and held-out prompts.

    Args:
        train: Prompts to train on. Sized, so that an epoch has an end at which the sampler is refreshed.
        heldout: Prompts that are only ever validated on.
        prompts_per_batch: Prompts per rollout batch.
        seed: Decides the order of prompts, together with the epoch.
    """

    def __init__(
        self,
        train: Sequence[Task],
        heldout: Sequence[Task] = (),
        prompts_per_batch: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if prompts_per_batch < 1:
            raise ConfigError(f"data.prompts_per_batch: expected at least 1, got {prompts_per_batch}")
        if not train:
            raise DataError("data.train: expected at least one prompt, got none")
        for name, tasks in (("train", train), ("heldout", heldout)):
            twice = [task_id for task_id, n in Counter(task.id for task in tasks).items() if n > 1]
            if twice:
                raise DataError(f"data.{name}: expected task ids to be unique, got {twice[:3]} twice")
        self.train = train
        self.heldout = heldout
        self.prompts_per_batch = prompts_per_batch
        self.seed = seed

    def train_dataloader(self) -> DataLoader[list[Task]]:
        """Batches of training prompts, in an order of their own for every epoch."""
        order = EpochShuffle(len(self.train), self.seed)
        return PromptLoader(self.train, self.prompts_per_batch, order, self.trainer)

    def val_dataloader(self) -> DataLoader[list[Task]]:
        """Batches of held-out prompts, always in the same order."""
        return PromptLoader(self.heldout, self.prompts_per_batch)

    def state_dict(self) -> dict[str, str]:
        """Returns a fingerprint of the training prompts."""
        return {"train": fingerprint(self.train)}

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        """Refuses to go on with other prompts than the run began with; they may be validated on.

        Raises:
            DataError: the training prompts have changed.
        """
        assert self.trainer is not None
        if self.trainer.state.fn == TrainerFn.FITTING and state_dict["train"] != fingerprint(self.train):
            raise DataError(
                "resume: expected the training prompts that the run began with, got others: data, its seed "
                "or a file has changed. To train on them, start anew from the exported model"
            )

    def transfer_batch_to_device(
        self, batch: list[Task], device: torch.device, dataloader_idx: int
    ) -> list[Task]:
        """Leaves tasks as they are: they hold no tensors."""
        return batch


def fingerprint(tasks: Sequence[Task], most: int = 256) -> str:
    """Returns a hash of the number of tasks and of what stands in at most `most` of them, evenly spread."""
    places = (
        sorted({place * len(tasks) // most for place in range(most)})
        if len(tasks) > most
        else range(len(tasks))
    )
    found = hashlib.sha256(str(len(tasks)).encode())
    for place in places:
        found.update(repr(_told(tasks[place])).encode())
    return found.hexdigest()


def _told(value: Any) -> Any:
    """What a record says, without fields at their defaults: a later version may have more of them."""
    if isinstance(value, tuple):
        return [_told(one) for one in value]
    if not is_dataclass(value):
        return value
    named = ((field, getattr(value, field.name)) for field in fields(value))
    return {field.name: _told(one) for field, one in named if one != field.default}


class PromptLoader(DataLoader[Any]):
    """Batches of tasks that a resumed run takes up where it left off, in the middle of an epoch too.

    Args:
        tasks: The prompts; may be read from disk one by one.
        prompts_per_batch: Prompts in a batch.
        order: In which they come; None for their own order.
        trainer: Knows how many batches of the epoch were trained on.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        prompts_per_batch: int,
        order: EpochShuffle | None = None,
        trainer: L.Trainer | None = None,
    ) -> None:
        super().__init__(
            tasks,  # type: ignore[arg-type]  # any sized sequence will do
            batch_size=prompts_per_batch,
            sampler=order,
            collate_fn=list,
        )
        self._order = order
        self._trainer = trainer

    def state_dict(self) -> dict[str, int]:
        """Returns the place in the epoch. A batch in which the run stopped counts as not begun."""
        if self._trainer is None:
            return {}
        progress = self._trainer.fit_loop.epoch_loop.batch_progress.current.state_dict()
        return {"epoch": self._trainer.current_epoch, "batches": progress["processed"]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from that place; at the end of an epoch, with the next one."""
        if self._order is not None and state and state["batches"] < len(self):
            assert self.batch_size is not None
            self._order.skip = {state["epoch"]: state["batches"] * self.batch_size}


class EpochShuffle(Sampler[int]):
    """A permutation that is a hash of (seed, epoch). Lightning calls `set_epoch`."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0
        self.skip: dict[int, int] = {}
        """Prompts of an epoch that a resumed run has trained on."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng(derive_seed(self.seed, self.epoch, "order"))
        yield from generator.permutation(self.size).tolist()[self.skip.get(self.epoch, 0) :]
