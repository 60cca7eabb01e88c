"""Simulates ways to deal the answers of a batch to engines, and shows how long engines have nothing to do.

    python tools/bench/dealing.py [--engines 8,64,1024] [--slots 256] [--revised 0.5] [--records runs/...]

An engine batches continuously: it has --slots places, and a step with r answers takes 8 ms + r x 50 us, about
that of a 7B model on an H100. It computes a prompt once, at 20 000 tokens per second. Lengths are log-normal,
with a mean near 1000 tokens and at most 8192; half of their variance is between prompts. --records takes
them from a run's recorded answers instead. A share of --revised groups gets a revision once its attempts are
finished; judging takes no time.

    requests   every n-th request (a prompt with all its answers)
    split k    requests are split until every engine has k parts, and dealt in turn
    queue k    the same parts, but an engine takes the next one when it has room for an answer
    queue      whole requests, likewise
    oracle     every answer by itself, longest first, to the engine with the least work: needs the lengths

A group that lies on one engine is revised there at once. Others are revised when all attempts are finished,
and their revisions are dealt in turn. `herl.rollout.dealing` splits as in "split 16", and not at all where
groups can be revised at once.

idle: share of the engines' time without an answer. seconds: until the last answer is
finished. All are means
over --seeds batches. No way of dealing is faster than the longest answer alone.
"""

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path

from workload import arguments_of, report, write

from herl.records.lines import read_records

STEP_SECONDS, ANSWER_SECONDS = 8e-3, 50e-6
PREFILL_TOKENS = 20_000.0
PROMPT, LONGEST = 500, 8192

Part = tuple[int, tuple[int, ...]]
"""Answers to one prompt that are dealt together: the prompt, and their lengths in tokens."""


def lengths_of(
    prompts: int, answers: int, draw: random.Random, recorded: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Returns the lengths of the answers to each prompt."""
    if recorded:
        return [draw.choices(draw.choice(recorded), k=answers) for _ in range(prompts)]
    between = [draw.gauss(0.0, 0.6) for _ in range(prompts)]
    return [
        [max(1, min(LONGEST, round(700 * math.e ** (own + draw.gauss(0.0, 0.6))))) for _ in range(answers)]
        for own in between
    ]


def step_seconds(running: int) -> float:
    return STEP_SECONDS + ANSWER_SECONDS * running


@dataclass
class Engine:
    """Continuous batching: all running answers grow by a token per step."""

    slots: int
    waiting: deque[tuple[int, int]] = field(default_factory=deque)  # prompt, length
    running: list[tuple[float, int]] = field(default_factory=list)  # the token count at its end, prompt
    tokens: float = 0.0  # steps so far
    now: float = 0.0
    busy: float = 0.0
    prompts: set[int] = field(default_factory=set)

    def fill(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            prompt, length = self.waiting.popleft()
            if prompt not in self.prompts:
                self.prompts.add(prompt)
                self.now += PROMPT / PREFILL_TOKENS
                self.busy += PROMPT / PREFILL_TOKENS
            heapq.heappush(self.running, (self.tokens + length, prompt))

    @property
    def next_end(self) -> float:
        return self.now + (self.running[0][0] - self.tokens) * step_seconds(len(self.running))

    def advance(self, now: float) -> None:
        """Works until this time, at which an answer may end."""
        if self.running and now > self.now:
            self.tokens += (now - self.now) / step_seconds(len(self.running))
            self.busy += now - self.now
        self.now = max(self.now, now)

    def end(self) -> int:
        """Removes the answer that ends next, and returns its prompt."""
        self.advance(self.next_end)
        return heapq.heappop(self.running)[1]


def simulate(
    shares: Sequence[Sequence[Part]],
    queue: Sequence[Part],
    slots: int,
    revisions: dict[int, int],
    window: int,
) -> tuple[float, float, list[int]]:
    """Returns when the last answer ends, the engines' busy seconds, and the prompts not yet revised.

    Args:
        shares: The parts that each engine gets at the start.
        queue: Parts that an engine takes when it has fewer than `window` answers.
        slots: Most answers that run at the same time on an engine.
        revisions: The length of the revision of each prompt that gets one.
        window: See `queue`.
    """
    engines = [Engine(slots) for _ in shares]
    left = deque(queue)
    unfinished = Counter[int]()
    holders: dict[int, set[int]] = {}
    events: list[tuple[float, int, int]] = []
    turn = 0

    def put(place: int, part: Part) -> None:
        prompt, lengths = part
        engines[place].waiting.extend((prompt, length) for length in lengths)
        holders.setdefault(prompt, set()).add(place)

    for prompt, lengths in chain(queue, *shares):
        unfinished[prompt] += len(lengths)
    for place, share in enumerate(shares):
        for part in share:
            put(place, part)
    late: list[int] = []

    def go_on(place: int) -> None:
        nonlocal turn
        engine = engines[place]
        while left and len(engine.running) + len(engine.waiting) < window:
            put(place, left.popleft())
        engine.fill()
        if engine.running:
            turn += 1
            heapq.heappush(events, (engine.next_end, turn, place))

    while left and any(len(e.waiting) < window for e in engines):  # in turn, not all to the first
        for place, engine in enumerate(engines):
            if left and len(engine.waiting) < window:
                put(place, left.popleft())
    for place in range(len(engines)):
        go_on(place)
    while events:
        _, _, place = heapq.heappop(events)
        prompt = engines[place].end()
        unfinished[prompt] -= 1
        if unfinished[prompt] == 0 and prompt in revisions:
            if len(holders[prompt]) == 1:
                engines[place].waiting.append((prompt, revisions[prompt]))
                unfinished[prompt] = -1  # never 0 again
            else:
                late.append(prompt)
        go_on(place)
    return max(e.now for e in engines), sum(e.busy for e in engines), late


def split(groups: Sequence[Sequence[int]], engines: int, parts_per_engine: int) -> list[Part]:
    """Splits each prompt's answers into equal parts, until there are enough parts or each is one answer."""
    count = min(len(groups[0]), -(-engines * parts_per_engine // len(groups)))
    parts = []
    for prompt, lengths in enumerate(groups):
        borders = [len(lengths) * i // count for i in range(count + 1)]
        parts += [(prompt, tuple(lengths[a:b])) for a, b in pairwise(borders)]
    return parts


def longest_first(groups: Sequence[Sequence[int]], engines: int) -> list[list[Part]]:
    shares: list[list[Part]] = [[] for _ in range(engines)]
    loads = [(0, place) for place in range(engines)]
    answers = sorted(((length, prompt) for prompt, ls in enumerate(groups) for length in ls), reverse=True)
    for length, prompt in answers:
        load, place = loads[0]
        heapq.heapreplace(loads, (load + length, place))
        shares[place].append((prompt, (length,)))
    return shares


def every_nth(parts: Sequence[Part], engines: int) -> list[Sequence[Part]]:
    return [parts[place::engines] for place in range(engines)]


def ways(
    groups: Sequence[Sequence[int]], engines: int, slots: int
) -> Iterator[tuple[str, list[Sequence[Part]], list[Part], int]]:
    whole = list(enumerate(map(tuple, groups)))
    window = max(1, min(slots, -(-sum(map(len, groups)) // engines)))
    yield "requests", every_nth(whole, engines), [], slots
    for per in (4, 16, 64):
        yield f"split {per}", every_nth(split(groups, engines, per), engines), [], slots
    for per in (4, 16, 64):
        yield f"queue {per}", [[] for _ in range(engines)], split(groups, engines, per), window
    yield "queue", [[] for _ in range(engines)], whole, window
    yield "oracle", list(longest_first(groups, engines)), [], slots


def main() -> None:
    arguments = arguments_of(__doc__, engines="8,64,1024", slots=256, revised=0.5, records="", seeds=3)
    recorded: dict[str, list[int]] = {}
    if arguments.records:
        for one in read_records(Path(arguments.records)):
            recorded.setdefault(one["task_id"], []).append(one["tokens"])
    figures = []
    for prompts in (64, 1024):
        for answers in (8, 64):
            rows = []
            for engines in map(int, arguments.engines.split(",")):
                totals: dict[str, list[float]] = {}
                for seed in range(arguments.seeds):
                    draw = random.Random(seed)
                    groups = lengths_of(prompts, answers, draw, list(recorded.values()))
                    revisions = {
                        prompt: draw.choice(lengths)
                        for prompt, lengths in enumerate(groups)
                        if draw.random() < arguments.revised
                    }
                    for name, shares, queue, window in ways(groups, engines, arguments.slots):
                        end, busy, late = simulate(shares, queue, arguments.slots, revisions, window)
                        if late:
                            again = [(prompt, (revisions[prompt],)) for prompt in late]
                            more, more_busy, _ = simulate(
                                every_nth(again, engines), [], arguments.slots, {}, 0
                            )
                            end, busy = end + more, busy + more_busy
                        found = totals.setdefault(name, [0.0, 0.0])
                        found[0] += end / arguments.seeds
                        found[1] += (1 - busy / (end * engines)) / arguments.seeds
                for name, (end, idle) in totals.items():
                    rows.append([engines, name, idle, end])
                    figures.append([prompts, answers, engines, name, idle, end])
            report(f"{prompts} prompts x {answers} answers", ["engines", "way", "idle", "seconds"], rows)
    write(arguments.json, {"prompts, answers, engines, way, idle, seconds": figures})


if __name__ == "__main__":
    main()
