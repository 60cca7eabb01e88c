"""Streams prompts with their rubrics. A batch is a list of tasks; nothing is tokenised here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
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
        return self._loader(self.train, EpochShuffle(len(self.train), self.seed))

    def val_dataloader(self) -> DataLoader[list[Task]]:
        """Batches of held-out prompts, always in the same order."""
        return self._loader(self.heldout, None)

    def transfer_batch_to_device(
        self, batch: list[Task], device: torch.device, dataloader_idx: int
    ) -> list[Task]:
        """Leaves tasks as they are: they hold no tensors."""
        return batch

    def _loader(self, tasks: Sequence[Task], sampler: Sampler[int] | None) -> DataLoader[Any]:
        return DataLoader(
            list(tasks),  # type: ignore[arg-type]  # any sized sequence will do
            batch_size=self.prompts_per_batch,
            sampler=sampler,
            collate_fn=list,
        )


class EpochShuffle(Sampler[int]):
    """A permutation that is a hash of (seed, epoch). Lightning calls `set_epoch`."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng(derive_seed(self.seed, self.epoch, "order"))
        yield from generator.permutation(self.size).tolist()
