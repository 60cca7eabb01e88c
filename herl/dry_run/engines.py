"""Simulates how long each engine samples, by the lengths of the answers and the way in which herl deals them.

An engine batches continuously: it has places for a number of answers, and each of its steps adds a token to
all that are running. Judging and environments take no time here.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from herl.rollout.dealing import shares
from herl.types import SampleRequest, Sampling
from herl.update.gpu_cost import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeed:
    """How fast an engine samples."""

    step_seconds: Callable[[int], float]
    """Seconds of a token for each of so many running answers."""
    prompt_seconds: float
    """Seconds of a prompt, which an engine computes once for all its answers."""
    slots: int
    """Most answers that run at the same time."""


def engine_seconds(
    asked: Sequence[Asked], engines: int, speed: EngineSpeed, *, whole_groups: bool
) -> list[float]:
    """Returns how long each engine works in one round.

    Args:
        asked: What is sampled in the round.
        engines: Number of engines.
        speed: The speed of each.
        whole_groups: Whether all answers to a prompt must come from one engine; follow-ups need that.

    >>> speed = EngineSpeed(step_seconds=lambda running: 0.5, prompt_seconds=1.0, slots=2)
    >>> engine_seconds([Asked(answers=(4, 10)), Asked(answers=(6,))], 2, speed, whole_groups=True)
    [6.0, 4.0]
    """
    requests = [
        SampleRequest(
            task_id="", group_id=str(place), prompt_ids=(), n=len(one.answers), sampling=Sampling(), seed=0
        )
        for place, one in enumerate(asked)
        if one.answers
    ]
    return [
        speed.prompt_seconds * len({part.group_id for part in share})
        + _seconds([_part(asked[int(part.group_id)], part) for part in share], speed)
        for share in shares(requests, engines, whole_groups=whole_groups)
    ]


def _part(asked: Asked, part: SampleRequest) -> Asked:
    return replace(asked, answers=tuple(asked.answers[index] for index in part.indices))


def _seconds(asked: Sequence[Asked], speed: EngineSpeed) -> float:
    """Returns the seconds of an engine's steps."""
    waiting = deque((tokens, place) for place, one in enumerate(asked) for tokens in one.answers)
    unfinished = [len(one.answers) for one in asked]
    running: list[tuple[int, int]] = []  # the step in which an answer ends, and its prompt
    steps, seconds = 0, 0.0
    while waiting or running:
        while waiting and len(running) < speed.slots:
            tokens, place = waiting.popleft()
            heapq.heappush(running, (steps + tokens, place))
        seconds += (running[0][0] - steps) * speed.step_seconds(len(running))
        steps, place = heapq.heappop(running)
        unfinished[place] -= 1
        if unfinished[place] == 0:  # negative once follow-ups end
            waiting.extend((tokens, place) for tokens in asked[place].follow_ups)
    return seconds
