"""Stages 2 and 3 at work: answers are sampled, judged while others are sampled, and followed up.

    requests -> [sampler] -> answer -> [judge runner] -> judged
                    ^                                     |
                    +---- follow-up requests <--- all answers to a prompt judged

With several ranks each engine takes its share of the requests, and every rank gets all judged answers back.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import chain
from queue import Empty, SimpleQueue

from herl.clock import PhaseClock
from herl.distributed import gather_results, rank, world_size
from herl.errors import SamplerError
from herl.judge import JudgeRunner
from herl.sampler import Sampler, StreamingSampler
from herl.types import Judged, Rollout, SampleRequest, Task

FollowUp = Callable[[Task, Sequence[Judged]], Sequence[SampleRequest]]
"""What to sample next for a task, once all its answers have been judged."""


def sample_and_judge(
    sampler: Sampler,
    runner: JudgeRunner,
    tasks: Sequence[Task],
    requests: Sequence[SampleRequest],
    clock: PhaseClock,
    phase: str = "sample",
    follow_up: FollowUp | None = None,
) -> dict[str, list[Judged]]:
    """Returns the judged answers of each task, in an order that does not depend on when they finished.

    An answer goes to the judge as soon as it is there, while the others are still being sampled. Waiting
    for the judge counts as "judge", sampling as `phase`, and follow-ups as "revise" from when nothing but
    them is being sampled.

    Args:
        follow_up: Asks for further answers to a task as soon as the first are judged. Only for a sampler
            that `takes_follow_ups`; the follow-ups are not followed up.

    Raises:
        AbstentionLimit: the judge fails too often.
        SamplerError: an answer could not be sampled.
    """
    engine, place = divmod(rank(), sampler.ranks_per_engine)
    share = requests[engine :: world_size() // sampler.ranks_per_engine]

    def work() -> list[Judged]:
        if place > 0:  # helps its engine to compute what the engine's first rank judges
            deque(sampler.generate(share), maxlen=0)
            return []
        answers = _Round(runner, tasks, share, clock, follow_up)
        answers.sample(sampler, phase)
        return answers.results()

    order = {task.id: place for place, task in enumerate(tasks)}
    judged = sorted(
        chain.from_iterable(gather_results(work)), key=lambda one: (order[one.rollout.task_id], _path(one))
    )
    runner.watch(judged)
    by_task: dict[str, list[Judged]] = {task.id: [] for task in tasks}
    for one in judged:
        by_task[one.rollout.task_id].append(one)
    return by_task


def takes_follow_ups(sampler: Sampler) -> bool:
    """Whether a sampler takes requests while it works: the ranks of a shared engine would have to agree."""
    return isinstance(sampler, StreamingSampler) and sampler.ranks_per_engine == 1


class _Round:
    """What one rank does of a round: hands answers to the judge, and follows tasks up."""

    def __init__(
        self,
        runner: JudgeRunner,
        tasks: Sequence[Task],
        requests: Sequence[SampleRequest],
        clock: PhaseClock,
        follow_up: FollowUp | None,
    ) -> None:
        self._runner = runner
        self._tasks = {task.id: task for task in tasks}
        self._requests = requests
        self._clock = clock
        self._follow_up = follow_up
        self._futures: list[Future[Judged]] = []
        # Of the answers that were requested at first; follow-ups have a parent:
        self._unsampled = sum(request.n for request in requests)
        self._being_judged = 0
        self._judged: SimpleQueue[Future[Judged]] = SimpleQueue()
        self._missing = Counter({request.task_id: request.n for request in requests})
        self._groups: dict[str, list[Judged]] = {request.task_id: [] for request in requests}

    def sample(self, sampler: Sampler, phase: str) -> None:
        """Samples everything, follow-ups too, and hands each answer to the judge.

        Raises:
            SamplerError: the sampler left answers out.
        """
        if self._follow_up is None:
            answers = sampler.generate(self._requests)
        else:
            assert isinstance(sampler, StreamingSampler)
            answers = sampler.stream(self._requests, self._more)
        with self._clock.time(phase):
            while self._unsampled and self._submit_next(answers):
                pass
        with self._clock.time("revise"):
            while self._submit_next(answers):
                pass
        if self._unsampled:
            raise SamplerError(
                f"{type(sampler).__name__} left out {self._unsampled} of the requested answers"
            )

    def results(self) -> list[Judged]:
        """Waits for what is still being judged."""
        with self._clock.time("judge"):
            return [future.result() for future in self._futures]

    def _submit_next(self, answers: Iterator[Rollout]) -> bool:
        rollout = next(answers, None)
        if rollout is None:
            return False
        future = self._runner.submit(self._tasks[rollout.task_id], rollout)
        self._futures.append(future)
        if self._follow_up is None:
            self._unsampled -= 1
        elif rollout.parent_id is None:
            self._unsampled -= 1
            self._being_judged += 1
            future.add_done_callback(self._judged.put)
        return True

    def _more(self, wait: bool) -> list[SampleRequest]:
        """Follow-ups of the tasks that have been judged since the last call (`herl.sampler.More`)."""
        found: list[SampleRequest] = []
        while self._being_judged:
            try:
                judged = self._next_judged(wait and not found)
            except Empty:
                break
            self._being_judged -= 1
            found += self._follow_ups(judged)
        return found

    def _next_judged(self, wait: bool) -> Judged:
        if not wait:
            return self._judged.get_nowait().result()
        with self._clock.time("judge"):
            return self._judged.get().result()

    def _follow_ups(self, judged: Judged) -> Sequence[SampleRequest]:
        assert self._follow_up is not None
        task_id = judged.rollout.task_id
        group = self._groups[task_id]
        group.append(judged)
        self._missing[task_id] -= 1
        if self._missing[task_id]:
            return []
        return self._follow_up(self._tasks[task_id], sorted(group, key=_path))


def _path(judged: Judged) -> list[int]:
    """Where an answer stands in its group, by its id: <group>/<attempt> or <group>/<attempt>/<revision>."""
    rollout = judged.rollout
    return [int(place) for place in rollout.id.removeprefix(f"{rollout.group_id}/").split("/")]
