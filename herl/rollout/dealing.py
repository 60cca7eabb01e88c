"""Deals the requests of a round to engines. Every rank computes the same deal, so nothing is exchanged.

Few prompts with many answers would leave most engines idle, or some with all the long answers to one prompt:
then requests are split, and each engine gets the same number of answers, of many prompts. A prompt costs one
more pass for each engine that computes it, so requests are split only until every engine has enough of them.

Groups stay whole where something sees all their answers at once: a judge of groups, or follow-ups within the
round, which would otherwise wait for the longest answer of all (`tools/bench/dealing.py` compares the ways).

Answers are the same whichever engine draws them: a part of a request keeps its indices, and each answer is
drawn from a hash of (seed, index).
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from herl.types import SampleRequest

PARTS_PER_ENGINE = 16
"""Requests that an engine should have before they are no longer split."""


def dealt(
    requests: Sequence[SampleRequest], engine: int, engines: int, *, whole_groups: bool
) -> list[SampleRequest]:
    """Returns what one engine samples, in the order of the requests; the arguments are those of `shares`.

    >>> from herl.types import Sampling
    >>> asked = SampleRequest(
    ...     task_id="otter", group_id="g", prompt_ids=(1,), n=4, sampling=Sampling(), seed=0
    ... )
    >>> [[*part.indices] for part in dealt([asked], 0, 2, whole_groups=False)]
    [[0], [2]]
    >>> dealt([asked], 0, 2, whole_groups=True) == [asked]
    True
    """
    return shares(requests, engines, whole_groups=whole_groups)[engine]


def shares(
    requests: Sequence[SampleRequest], engines: int, *, whole_groups: bool
) -> list[list[SampleRequest]]:
    """Returns what each engine samples.

    Requests, parts or groups go in turn to the engine with the fewest answers so far.

    Args:
        requests: All requests of the round.
        engines: Number of engines.
        whole_groups: Whether all requests of a group must go to one engine.
    """
    pieces = _groups(requests) if whole_groups else _parts(requests, engines)
    loads = [(0, place) for place in range(engines)]  # answers so far
    found: list[list[SampleRequest]] = [[] for _ in range(engines)]
    for piece in pieces:
        answers, place = loads[0]
        heapq.heapreplace(loads, (answers + sum(request.n for request in piece), place))
        found[place] += piece
    return found


def _groups(requests: Sequence[SampleRequest]) -> list[list[SampleRequest]]:
    by_group: defaultdict[str, list[SampleRequest]] = defaultdict(list)
    for request in requests:
        by_group[request.group_id].append(request)
    return list(by_group.values())


def _parts(requests: Sequence[SampleRequest], engines: int) -> Iterator[list[SampleRequest]]:
    """Yields parts of about equal size, in order; whole requests if there are enough, or one engine."""
    wanted = 1 if engines == 1 else -(-engines * PARTS_PER_ENGINE // max(1, len(requests)))
    for request in requests:
        count = min(wanted, request.n)
        borders = [request.n * place // count for place in range(count + 1)]
        for start, end in itertools.pairwise(borders):
            whole = count == 1
            yield [request if whole else replace(request, first=request.first + start, n=end - start)]
