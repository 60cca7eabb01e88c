"""Draws the batches of a run: each right before its update, or one batch ahead, beside the update before it.

    step              0           1           2
    main thread       update 0    update 1    update 2
    beside it         draw 1      draw 2      draw 3

With `RolloutPlan.batches_ahead=1` a thread samples, judges and revises the next batch while the policy is
updated. It begins and ends within a training step: refreshes, validations and checkpoints never meet a batch
that is half drawn, and a checkpoint holds the one that is ready. The sampler has the weights from before the
update, so a batch is trained on exactly one batch of updates later; the loss corrects for them.

Batches are drawn one after another in either case, so judge, hindsight and replay see them in the same order.
The first batch of a run is drawn before its update. What goes wrong beside an update is raised when the batch
is needed: the step that went well is recorded first. A resumed run draws such a batch from its own weights.

A batch that is not trained on leaves no trace: if its draw or its update fails, the components go back to
their state before it, which is what a checkpoint that is saved then holds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from herl.clock import PhaseClock
from herl.distributed import new_group, speaking_in, together
from herl.environment import opened
from herl.errors import ConfigError, DataError
from herl.models.fsdp import FSDPStrategy
from herl.rollout.collect import Collection, collect
from herl.rollout.stages import Stages
from herl.trainer_callbacks import callbacks_of
from herl.types import Task
from herl.types.plain import plain, restored

if TYPE_CHECKING:
    import lightning as L

logger = logging.getLogger(__name__)
REFRESH = "callbacks.refresh_sampler.every_n_steps"
Key = tuple[int, int, int]
"""A batch's place in the run: (seed, epoch, number). All its randomness is a hash of it."""


@runtime_checkable
class Batches(Protocol):
    """Where the batches of a run come from, such as `herl.data.RubricDataModule`."""

    train: Sequence[Task]
    """The training prompts."""

    def following(self, epoch: int, number: int) -> tuple[int, int, Sequence[Task]]:
        """Returns epoch, number and prompts of the batch that the trainer gets after another one.

        Args:
            epoch: Index of that other batch's epoch, from 0.
            number: Its place in the epoch, from 0.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """A batch that is drawn ahead."""

    key: Key
    task_ids: tuple[str, ...]
    """Ids of its prompts, in order."""
    result: Future[Collection]

    @property
    def collection(self) -> Collection | None:
        """The finished collection; None if something went wrong."""
        return None if self.result.exception() is not None else self.result.result()


class Collector:
    """Returns each batch's groups and experiences, drawn now or ahead.

    Args:
        stages: The components of the run.
        clock: Adds up the time. The phases of a batch drawn ahead are added once it is ready, to no lap;
            "wait" is what the trainer waits for it after an update.
        data: The run's data module.
    """

    def __init__(self, stages: Stages, clock: PhaseClock, data: object) -> None:
        self.stages = stages
        self.clock = clock
        self._data = data
        self._ahead: Ahead | None = None
        self._numerics: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._group: Any = None
        self._corrected = False
        self._way_back: Callable[[], None] = lambda: None
        """Takes the components back to their state when the current batch was asked for: before it was drawn,
        or after it if it was drawn ahead, since a checkpoint holds it then."""
        self._unused = 0
        """Answers drawn ahead that the run turned out not to train on."""

    def open(self, trainer: L.Trainer, *, corrected: bool) -> None:
        """Makes ready for a training. All ranks must call it.

        Args:
            trainer: The run's trainer.
            corrected: See `check_ahead`.

        Raises:
            ConfigError: the run is to draw ahead, and cannot; or its sampler would be refreshed too seldom.
        """
        self._corrected = corrected
        check_fresh(trainer, self.stages, corrected=corrected)
        if not self.stages.plan.batches_ahead:
            return
        check_ahead(trainer, self._data, self.stages, corrected=corrected)
        self._numerics = trainer.precision_plugin.forward_context
        self._group = new_group(getattr(trainer.strategy, "_timeout", None))

    def collect(self, tasks: Sequence[Task], key: Key, share: float) -> Collection:
        """Returns the results of a batch: those drawn ahead, or else it is drawn now.

        Args:
            tasks: Its prompts.
            key: Its place in the run.
            share: Share of the run that is done before it, in [0, 1].

        Raises:
            AbstentionLimit: the judge fails too often.
            SamplerError: an answer could not be sampled.
        """
        ahead, task_ids = self._ahead, tuple(task.id for task in tasks)
        taken = self.stages.plan.batches_ahead or self._corrected  # else resumed without importance weights
        self._way_back = self.stages.way_back()
        if ahead is not None and taken and (ahead.key, ahead.task_ids) == (key, task_ids):
            return ahead.result.result()
        if answers := self._answers_ahead():  # resumed with another data.prompts_per_batch, say
            logger.warning("the %d answers drawn ahead do not fit the batch, which is drawn now", answers)
            self._unused += answers
        self._ahead = None
        return _draw(tasks, key, share, self.stages, self.clock)

    @contextmanager
    def during_update(self, key: Key, share: float) -> Iterator[None]:
        """While the block trains on a batch, draws the batch that follows, or lets the sampler sleep.

        Args:
            key: The place of the batch that the block trains on.
            share: Share of the run that is done after it, in [0, 1]. At 1.0 no batch follows.
        """
        if not self.stages.plan.batches_ahead or share >= 1.0:
            with _undone(self._way_back):
                self.stages.sampler.sleep()
                yield
            self._ahead = None
            return
        with _undone(self._way_back):
            tasks, key = self._following(key)
        ahead = Ahead(key=key, task_ids=tuple(task.id for task in tasks), result=Future())
        beside = PhaseClock()
        thread = Thread(
            target=self._draw_ahead, args=(ahead, tasks, share, beside), name="ahead", daemon=True
        )
        thread.start()
        try:
            yield
        except Exception:  # the run ends: nothing may be in use by then. Ctrl-C does not wait
            thread.join()
            self._way_back()
            raise
        with self.clock.time("wait"):
            thread.join()
        self.clock.add_beside(beside.seconds)
        self._ahead = ahead

    def left_over(self) -> dict[str, int]:
        """Returns the number of answers that were drawn ahead and not trained on, as a count of the run, and
        warns; empty without such answers. A run that ends before its limits leaves some over."""
        answers = self._unused + self._answers_ahead()
        if not answers:
            return {}
        logger.warning("%d answers that were drawn ahead have not been trained on", answers)
        return {"answers_left_over": answers}

    def _answers_ahead(self) -> int:
        collection = self._ahead.collection if self._ahead is not None else None
        groups = () if collection is None else collection.groups
        return sum(len(group.attempts) + len(group.revisions) for group in groups)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Returns the batch drawn ahead, in plain types; empty without one."""
        collection = self._ahead.collection if self._ahead is not None else None
        if self._ahead is None or collection is None:
            return {}
        return {
            "key": list(self._ahead.key),
            "task_ids": list(self._ahead.task_ids),
            "collection": plain(collection, Collection),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores it.

        Raises:
            DataError: the data module no longer has its prompts.
        """
        if not state:
            return
        train: Sequence[Task] = getattr(self._data, "train", ())
        try:
            collection = restored(state["collection"], {task.id: task for task in train}, Collection)
        except KeyError as error:
            raise DataError(
                "resume: expected the training prompts that the run began with, got none with the id "
                f"{error} of a batch that was drawn ahead"
            ) from error
        seed, epoch, number = state["key"]
        self._ahead = Ahead(key=(seed, epoch, number), task_ids=tuple(state["task_ids"]), result=Future())
        environment = self.stages.environment
        groups = (replace(group, task=opened(environment, group.task)) for group in collection.groups)
        self._ahead.result.set_result(replace(collection, groups=tuple(groups)))

    # The thread

    def _following(self, key: Key) -> tuple[Sequence[Task], Key]:
        seed, epoch, number = key
        following = cast(Batches, self._data).following  # checked in `open`
        epoch, number, tasks = together(lambda: following(epoch, number))
        return tasks, (seed, epoch, number)

    def _draw_ahead(self, ahead: Ahead, tasks: Sequence[Task], share: float, clock: PhaseClock) -> None:
        """Runs in the thread. What it tells other ranks must not meet what the update tells them."""
        try:
            with speaking_in(self._group), self._numerics():
                collection = _draw(tasks, ahead.key, share, self.stages, clock)
            ahead.result.set_result(replace(collection, beside=dict(clock.seconds)))
        except BaseException as error:  # raised by `collect`, in the main thread
            ahead.result.set_exception(error)


def _draw(tasks: Sequence[Task], key: Key, share: float, stages: Stages, clock: PhaseClock) -> Collection:
    """Draws a batch on all ranks, or fails on all of them and leaves no trace in the components."""
    with _undone(stages.way_back()):
        return together(lambda: _drawn(tasks, key, share, stages, clock))


@contextmanager
def _undone(way_back: Callable[[], None]) -> Iterator[None]:
    """Goes back if the block fails."""
    try:
        yield
    except BaseException:
        way_back()
        raise


def _drawn(tasks: Sequence[Task], key: Key, share: float, stages: Stages, clock: PhaseClock) -> Collection:
    """Stages 2 to 8, with the notices of a training batch that hindsight gets."""
    attempts = []
    stages.hindsight.begin_batch(share)
    try:
        collection = collect(tasks, stages, key, clock)
        attempts = [group.attempts for group in collection.groups]
    finally:  # a validation may come before an error is raised
        stages.hindsight.end_batch(attempts)
    return collection


def check_fresh(trainer: L.Trainer, stages: Stages, *, corrected: bool) -> None:
    """Checks that a sampler that keeps its own weights is refreshed before every batch, if it must be. Before
    its `start`, a sampler may not know yet that it will keep some.

    Args:
        trainer: The run's trainer.
        stages: Its components.
        corrected: See `check_ahead`.

    Raises:
        ConfigError: the loss could not learn from the answers of older weights.
    """
    if not (corrected or stages.sampler.live or _refreshes_every_batch(trainer)):
        raise ConfigError(
            f"{REFRESH}: expected 1 with loss.mismatch.level=none, which does not correct for answers of "
            "older weights, got another number or no such callback: use 1, or loss.mismatch.level=token"
        )


def _refreshes_every_batch(trainer: L.Trainer) -> bool:
    return any(getattr(one, "refreshes_every_batch", False) for one in callbacks_of(trainer, object))


def check_ahead(trainer: L.Trainer, data: object, stages: Stages, *, corrected: bool) -> None:
    """Checks that a run can draw a batch ahead, if it is to. Needs no model.

    Args:
        trainer: The run's trainer.
        data: Its data module.
        stages: Its components.
        corrected: Whether the loss corrects for answers of older weights, or needs no correction.

    Raises:
        ConfigError: names the key to change.
    """
    if not stages.plan.batches_ahead:
        return
    strategy = trainer.strategy
    stages.sampler.check_ahead(
        device_type=strategy.root_device.type, sharded=isinstance(strategy, FSDPStrategy)
    )
    if not corrected:
        raise ConfigError(
            "loss.mismatch.level: expected token or sequence with rollout.batches_ahead=1, which correct for "
            "answers of older weights, got none"
        )
    if not _refreshes_every_batch(trainer):
        raise ConfigError(
            f"{REFRESH}: expected 1 with rollout.batches_ahead=1, so that answers are no more than one batch "
            "older than the policy, got another number or no such callback"
        )
    if not isinstance(data, Batches):
        raise ConfigError(
            "rollout.batches_ahead: expected 0, or a data module with a method `following`, such as "
            f"RubricDataModule, got 1 and {type(data).__name__}"
        )
