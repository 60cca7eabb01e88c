"""Streams prompts with their rubrics. A batch is a list of tasks; nothing is tokenized here."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import islice, zip_longest
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Sampler

from herl.data.hidden import PartlyHidden
from herl.data.mix_order import MixedOrder
from herl.data.split import check_any, prompt_hash, split_off
from herl.distributed import gather, gather_results, rank, together, world_size
from herl.errors import ConfigError, DataError
from herl.seeds import derive_seed
from herl.types import Task

logger = logging.getLogger(__name__)


class RubricDataModule(L.LightningDataModule):
    """Training and held-out prompts.

    Args:
        train: Prompts to train on. Must be sized, since the sampler is refreshed at the end of an epoch.
        heldout: Prompts used only for validation.
        heldout_share: Share of the training prompts, in [0, 1), that are held out if `heldout` is empty
            (`herl.data.split`).
        heldout_seed: Seed of that choice.
        prompts_per_batch: Prompts per rollout batch.
        seed: Determines the order of prompts, together with the epoch, and which criteria are hidden.
        hidden_criteria: Share of the criteria, in [0, 1), of training and held-out prompts that only gold
            judges see (`herl.data.hidden`).
    """

    def __init__(
        self,
        train: Sequence[Task],
        heldout: Sequence[Task] = (),
        heldout_share: float = 0.0,
        heldout_seed: int = 0,
        prompts_per_batch: int = 16,
        seed: int = 0,
        hidden_criteria: float = 0.0,
    ) -> None:
        super().__init__()
        if prompts_per_batch < 1:
            raise ConfigError(f"data.prompts_per_batch: expected at least 1, got {prompts_per_batch}")
        check_any(train, heldout)
        for name, tasks in (("train", train), ("heldout", heldout)):
            twice = [task_id for task_id, n in Counter(task.id for task in tasks).items() if n > 1]
            if twice:
                raise DataError(f"data.{name}: expected unique task ids, got {twice[:3]} more than once")
        if not heldout and heldout_share:
            train, heldout = split_off(train, heldout_share, heldout_seed)
        if hidden_criteria:
            train, heldout = (PartlyHidden(tasks, hidden_criteria, seed) for tasks in (train, heldout))
        self.train = train
        self.heldout = heldout
        self.prompts_per_batch = prompts_per_batch
        self.seed = seed
        self._weights: Mapping[str, float] = dict(getattr(train, "weights", {}))
        self.mix: MixedOrder | None = None  # of several sources with weights
        if self._weights:
            self.mix = MixedOrder([task.source for task in train], self._weights, seed, prompts_per_batch)
        self._state: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Checks that all ranks have the same prompts. Before training, hashes them for its checkpoints:
        should their file change during the run, it cannot be read then. All ranks must call it.

        Raises:
            DataError: another rank has other prompts, or could not read its own.
            ConfigError: it has another seed or size of batches.
        """
        orders = gather((self.seed, self.prompts_per_batch))
        if len(set(orders)) > 1:
            raise ConfigError(
                "data: expected the same seed and prompts_per_batch on all ranks, got "
                f"{sorted(set(orders))}: start herl with the same settings on each machine"
            )
        if stage == "fit":
            together(self.state_dict)
            check_ranks_agree("data.train", self.train, self._state["train"])
        check_ranks_agree("data.heldout", self.heldout)

    def train_dataloader(self) -> DataLoader[list[Task]]:
        """Returns batches of training prompts, in a different order every epoch; with
        `trainer.overfit_batches`, in the file's order, so that every epoch begins with the same ones."""
        if self._overfits():
            return PromptLoader(self.train, self.prompts_per_batch, trainer=self.trainer)
        order = EpochShuffle(len(self.train), self.seed, self.mix)
        return PromptLoader(self.train, self.prompts_per_batch, order, self.trainer)

    def further(self, count: int, seed: int, without: Container[str]) -> list[Task]:
        """Returns at most `count` different training prompts, in random order (`herl.rollout.refill`). With
        `trainer.overfit_batches` there are no further ones.

        Args:
            count: Prompts wanted.
            seed: All randomness is a hash of it.
            without: Ids of prompts that are not to be drawn.
        """
        if self._overfits():
            return []
        places = shuffled(len(self.train), seed) if self.mix is None else self.mix.shuffled(seed)
        drawn = (self.train[place] for place in places)
        return list(islice((task for task in drawn if task.id not in without), count))

    def following(self, epoch: int, number: int) -> tuple[int, int, list[Task]]:
        """Returns epoch, number and prompts of the batch that is trained on after batch `number` of an epoch
        (`herl.rollout.ahead`). Both count from 0. For use during training."""
        assert self.trainer is not None
        number += 1
        if number >= self.trainer.num_training_batches:
            epoch, number = epoch + 1, 0
        loader = cast(PromptLoader, self.trainer.train_dataloader)
        return epoch, number, loader.batch(epoch, number)

    def val_dataloader(self) -> DataLoader[list[Task]]:
        """Returns batches of held-out prompts, always in the same order; with `trainer.overfit_batches`, of
        the prompts that are trained on."""
        return PromptLoader(self.train if self._overfits() else self.heldout, self.prompts_per_batch)

    def _overfits(self) -> bool:
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def state_dict(self) -> dict[str, Any]:
        """Returns a fingerprint of the training prompts, the seed of their order, and a hash of each."""
        if not self._state:
            hashes = sorted({prompt_hash(task) for task in self.train})
            self._state = {"train": fingerprint(self.train), "prompts": torch.tensor(hashes)}
        weights = {"weights": dict(self._weights)} if self._weights else {}
        return {**self._state, "seed": self.seed, **weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses to continue training on other prompts, or on the same ones in another order. Validating is
        allowed, with a warning if the checkpoint was trained on some of the held-out prompts.

        Raises:
            DataError: the training prompts have changed.
            ConfigError: their order has changed, so that some would be skipped and others repeated.
        """
        assert self.trainer is not None
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._warn_of_trained(state_dict)
            return
        if state_dict["train"] != self.state_dict()["train"]:
            raise DataError(
                "resume: expected the training prompts that the run began with, got others: data, its seed, "
                "data.heldout_share (0 if the run held no prompts out), data.heldout_seed or a file has "
                "changed. To train on the new prompts, export the model and start a new run"
            )
        if state_dict["seed"] != self.seed:
            raise ConfigError(
                f"data.seed: expected the checkpoint's {state_dict['seed']}, got {self.seed}: the order of "
                "prompts is a hash of it, so some would be skipped and others repeated"
            )
        if (before := state_dict.get("weights", {})) != self._weights:
            raise ConfigError(
                f"data.train.sources: expected the checkpoint's weights {before or 'none'}, got "
                f"{self._weights or 'none'}: the order of prompts depends on them, so some would be skipped "
                "and others repeated"
            )

    def _warn_of_trained(self, state: dict[str, Any]) -> None:
        """Warns of held-out prompts that the checkpoint was trained on."""
        if self._overfits() or not len(self.heldout) or rank() != 0:
            return
        trained = set(state["prompts"].tolist())
        count = sum(prompt_hash(task) in trained for task in self.heldout)
        if count:
            logger.warning(
                "these held-out prompts include prompts that the checkpoint was trained on (%d of %d), so "
                "their reward says little about new ones. Keep the run's data, data.heldout_share and "
                "data.heldout_seed, or name other prompts",
                count,
                len(self.heldout),
            )

    def transfer_batch_to_device(
        self, batch: list[Task], device: torch.device, dataloader_idx: int
    ) -> list[Task]:
        """Returns the tasks unchanged, since they hold no tensors."""
        return batch


def fingerprint(tasks: Sequence[Task]) -> str:
    """Returns a hash of the number of tasks and of all their contents."""
    found = hashlib.sha256(str(len(tasks)).encode())
    for task in tasks:
        found.update(repr(_non_default(task)).encode(errors="surrogatepass"))
    return found.hexdigest()


def check_ranks_agree(name: str, tasks: Sequence[Task], known: str | None = None) -> None:
    """Refuses prompts that differ between ranks, since ranks divide answers by the places of their prompts.

    Args:
        name: What the prompts are, for the error.
        tasks: This rank's prompts. All ranks must call it.
        known: Their fingerprint, if it is known.

    Raises:
        DataError: names the first prompt that differs, and the first rank that has another one.
    """
    if world_size() == 1:
        return
    found = gather_results(lambda: known or fingerprint(tasks))
    if len(set(found)) == 1:
        return
    other = next(place for place, one in enumerate(found) if one != found[0])
    rows = gather([(repr(task.id), fingerprint([task])) for task in tasks])
    pairs = enumerate(zip_longest(rows[0], rows[other], fillvalue=("missing", "")))
    place, (first, second) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
    contents = ", with other contents" if first[0] == second[0] else ""
    raise DataError(
        f"{name}: expected the same prompts on all ranks, got {len(rows[0])} on rank 0 and "
        f"{len(rows[other])} on rank {other}: prompt {place + 1} is {first[0]} on rank 0 and "
        f"{second[0]} on rank {other}{contents}. Do all machines read the same version of the file?"
    )


def _non_default(value: Any) -> Any:
    """A record's fields that differ from their defaults, since a later version may add fields."""
    if isinstance(value, tuple):
        return [_non_default(entry) for entry in value]
    if not is_dataclass(value):
        return value
    named = ((field, getattr(value, field.name)) for field in fields(value))
    return {field.name: _non_default(content) for field, content in named if content != field.default}


class PromptLoader(DataLoader[Any]):
    """Batches of tasks. A resumed run continues where it stopped, even in the middle of an epoch.

    Progress is counted in prompts, so a resumed run may continue with another number of prompts per batch.

    Args:
        tasks: The prompts; may be read from disk one at a time.
        prompts_per_batch: Prompts per batch.
        order: Order of the prompts; None keeps the order of `tasks`.
        trainer: Knows how many batches of the epoch have been trained on.
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
        self._tasks, self._prompts, self._size = tasks, len(tasks), prompts_per_batch
        self._order = order
        self._trainer = trainer

    def __iter__(self) -> Any:
        """Returns an iterator over the batches. All ranks must read along: what one cannot read ends all."""
        return _read_together(super().__iter__())

    def batch(self, epoch: int, number: int) -> list[Task]:
        """Returns batch `number` of any epoch, as the iterator of that epoch does."""
        order = range(self._prompts) if self._order is None else self._order.places(epoch)
        start = self._done(epoch, number)
        return [self._tasks[place] for place in order[start : start + self._size]]

    def state_dict(self) -> dict[str, int]:
        """Returns the position in the epoch. A batch during which the run stopped counts as not begun."""
        if self._trainer is None:
            return {}
        epoch, batches = self._trainer.current_epoch, self._progress().processed
        return {"epoch": epoch, "batches": batches, "prompts": self._done(epoch, batches)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from that position; at the end of an epoch, with the next epoch."""
        if self._order is None or not state:
            return
        done = state["prompts"]
        # Batches are numbered so that the epoch's last one has the number that Lightning expects.
        batches = len(self) - math.ceil((self._prompts - done) / self._size)
        if done < self._prompts:
            self._order.skip = {state["epoch"]: done}
        self._order.first = {state["epoch"]: batches}
        if self._trainer is not None:
            current = self._progress()
            moved = batches - state["batches"]
            for name in ("ready", "started", "processed", "completed"):
                setattr(current, name, getattr(current, name) + moved)

    def _done(self, epoch: int, batches: int) -> int:
        """Prompts of the epoch in its first batches, some of which may have had another size."""
        order = self._order
        skipped, first = (order.skip.get(epoch, 0), order.first.get(epoch, 0)) if order else (0, 0)
        return min(self._prompts, skipped + (batches - first) * self._size)

    def _progress(self) -> Any:
        """Lightning's count of the batches of this epoch."""
        assert self._trainer is not None
        return self._trainer.fit_loop.epoch_loop.batch_progress.current


def _read_together(batches: Iterator[Any]) -> Iterator[Any]:
    while (batch := together(lambda: next(batches, None))) is not None:
        yield batch


class EpochShuffle(Sampler[int]):
    """A permutation derived from (seed, epoch), or the order of a mix. Lightning calls `set_epoch`.

    Args:
        size: Number of prompts, which is also that of an epoch.
        seed: All randomness is a hash of it.
        mix: Orders the prompts of several sources by their weights; None for every prompt once an epoch.
    """

    def __init__(self, size: int, seed: int, mix: MixedOrder | None = None) -> None:
        self.size = size
        self.seed = seed
        self.mix = mix
        self.epoch = 0
        self.skip: dict[int, int] = {}
        """Epoch -> number of prompts that a resumed run has already trained on."""
        self.first: dict[int, int] = {}
        """Epoch -> number of the batch that a resumed run continues with."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        yield from self.places(self.epoch)[self.skip.get(self.epoch, 0) :]

    def places(self, epoch: int) -> list[int]:
        """Returns the order of the prompts of an epoch, as places in the data."""
        if self.mix is not None:
            return self.mix.places(epoch)
        return shuffled(self.size, derive_seed(self.seed, epoch, "order"))


def shuffled(size: int, seed: int) -> list[int]:
    """Returns the numbers below `size` in random order."""
    places: list[int] = np.random.default_rng(seed).permutation(size).tolist()
    return places
