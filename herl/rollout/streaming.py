"""Runs stages 2 and 3 together: answers are judged while others are sampled, and groups are followed up.

    requests -> [sampler] -> answer -> [judge runner] -> judged
                 ^  ^          |                           |
                 |  +- next <- [environment]               |
                 +------- follow-up requests <--- all answers of a group judged

With an environment, an answer may take several turns (`episodes.py`). A sampler that accepts no requests
while it works gets the next turns of all episodes together, once it has finished those before.

A judge of groups (`Judge.judges_groups`) gets an answer with the last one of its group, so judging overlaps
only with the sampling of other groups.

With several ranks, each engine handles its share of the requests (`dealing.py`), and every rank gets all
judged answers.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import inf
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

from herl.clock import PhaseClock
from herl.distributed import gather, rank, together, world_size
from herl.environment.runner import Step
from herl.errors import SamplerError
from herl.judge import JudgeRunner
from herl.rollout.dealing import dealt
from herl.rollout.episodes import Episode, Place, Player, place_of
from herl.rollout.exchange import exchanged
from herl.rollout.requests import RevisionRequests
from herl.rollout.stages import Stages
from herl.sampler import Sampler, nothing_more
from herl.types import Group, Judged, Rollout, SampleRequest

T = TypeVar("T")
Event = Callable[[], Sequence[SampleRequest]]
"""Acts on what is ready, and returns what is to be sampled because of it."""


class FollowUp(Protocol):
    """Decides what to sample next for a group, once all its requested answers are judged."""

    def __call__(self, group: Group) -> RevisionRequests: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The result of one round of sampling and judging, the same on every rank."""

    judged: tuple[Judged, ...] = ()
    """In an order that does not depend on when they finished."""
    followed_up: frozenset[str] = frozenset()
    """Ids of the groups that were followed up within the round; the others are left to another round. It is
    empty for samplers that only generate, and for engines of several ranks."""
    over_long: int = 0
    """Revision prompts that were dropped within the round."""


Question = tuple[str, bool, bool]
"""What a judge of groups is asked about at once: a group's answers that were requested, or followed up; and
among them those that have read the rubric, apart from those that have not."""


def sample_and_judge(
    stages: Stages,
    groups: Sequence[Group],
    requests: Sequence[SampleRequest],
    clock: PhaseClock,
    phase: str = "sample",
    follow_up: FollowUp | None = None,
) -> Answers:
    """Samples these requests and judges each answer as soon as it arrives.

    Waiting for the judge counts as "judge", and for the environment as "environment". Sampling counts as
    `phase`, and as "revise" once only follow-ups are left.

    Args:
        stages: The sampler, the judge, and the environment, if there is one.
        groups: The groups that the requests belong to.
        requests: At most one for each group and draft, and one for each group that shows the rubric.
        clock: Adds up the time.
        phase: The clock phase for sampling.
        follow_up: Called with each group and its attempts, if the sampler accepts requests while it works.
            It is not called for follow-ups. With None, a group may be split between engines.

    Raises:
        AbstentionLimit: the judge fails too often.
        SamplerError: an answer could not be sampled, or was not requested.
    """
    sampler, runner = stages.sampler, stages.judge_runner
    engine, place = divmod(rank(), sampler.ranks_per_engine)
    if not follows_up_at_once(sampler):
        follow_up = None
    whole = follow_up is not None or runner.judge.judges_groups
    share = dealt(requests, engine, world_size() // sampler.ranks_per_engine, whole_groups=whole)

    def work() -> Answers:
        if place > 0:  # helps compute the answers; the engine's first rank judges them
            deque(sampler.stream(share, nothing_more), maxlen=0)
            return Answers()
        part = _Round(runner, stages.player, groups, share, clock, follow_up)
        part.sample(sampler, phase)
        return part.answers()

    gather(None)  # a rank that failed says so here: engines of several ranks need all of them below
    own = together(work)
    judged = _in_order(groups, requests, exchanged(own.judged))
    runner.watch(judged)
    followed_up, over_long = zip(*gather((own.followed_up, own.over_long)), strict=True)
    return Answers(
        judged=tuple(judged),
        followed_up=frozenset(chain.from_iterable(followed_up)),
        over_long=sum(over_long),
    )


def follows_up_at_once(sampler: Sampler) -> bool:
    """Whether a group can be followed up while others are still sampled.

    Ranks that share an engine would have to agree on the order of follow-ups, so they get none.
    """
    return sampler.ranks_per_engine == 1 and type(sampler).stream is not Sampler.stream


def _in_order(
    groups: Sequence[Group], requests: Sequence[SampleRequest], judged: Sequence[Judged]
) -> list[Judged]:
    """Sorts answers by group, draft and index, whichever way their requests were ordered.

    A draft that is in no group has the place of the request for its revisions. Revisions without a draft come
    last.
    """
    group_place = {group.id: place for place, group in enumerate(groups)}
    draft_place = {request.parent_id: place for place, request in enumerate(requests)}
    known = [*judged, *(attempt for group in groups for attempt in group.attempts)]
    if drafts := {one.rollout.parent_id for one in judged} - {None}:
        draft_place |= {one.rollout.id: one.rollout.index for one in known if one.rollout.id in drafts}

    def place(one: Judged) -> tuple[float, ...]:
        rollout = one.rollout
        if rollout.parent_id is None:
            draft: tuple[float, ...] = () if rollout.origin == "policy" else (inf,)
        else:
            draft = (draft_place[rollout.parent_id],)
        return group_place[rollout.group_id], *draft, rollout.index

    return sorted(judged, key=place)


class _Round:
    """One rank's part of a round: plays episodes, submits answers to the judge, and follows up on groups."""

    def __init__(
        self,
        runner: JudgeRunner,
        player: Player,
        groups: Sequence[Group],
        requests: Sequence[SampleRequest],
        clock: PhaseClock,
        follow_up: FollowUp | None,
    ) -> None:
        self._runner = runner
        self._player = player
        self._groups = {group.id: group for group in groups}
        self._requests = requests
        self._clock = clock
        self._follow_up = follow_up
        self._asked = {(request.group_id, request.parent_id) for request in requests}
        self._unsampled = sum(request.n for request in requests)
        self._missing: dict[Place, SampleRequest] = {}
        """The requests of answers that have not begun."""
        self._expect(requests)
        self._unjudged = Counter({request.group_id: 0 for request in requests})
        for request in requests:
            self._unjudged[request.group_id] += request.n
        self._sizes: Counter[Question] = Counter()
        """Answers that are judged together."""
        for request in requests:
            self._sizes[request.group_id, True, request.told] += request.n
        self._held: defaultdict[Question, list[Rollout]] = defaultdict(list)
        self._futures: list[Future[Judged]] = []
        self._playing: dict[Place, Episode] = {}
        """Episodes whose next turn is sampled."""
        self._stepping, self._being_judged = 0, 0
        """Episodes that wait for the environment, and requested answers that wait for the judge."""
        self._events: SimpleQueue[Event] = SimpleQueue()
        """What to do for each of these, once it is ready."""
        self._attempts: dict[str, list[Judged]] = {request.group_id: [] for request in requests}
        self._followed_up: set[str] = set()
        self._over_long = 0

    def sample(self, sampler: Sampler, phase: str) -> None:
        """Samples everything, including further turns and follow-ups, and submits each answer to the judge.

        Raises:
            SamplerError: the sampler left out answers.
        """
        more = self._more if sampler.ranks_per_engine == 1 else nothing_more
        requests = self._requests
        while True:
            answers = sampler.stream(requests, more)
            with self._clock.time(phase):
                while self._unsampled and self._take_next(answers):
                    pass
            with self._clock.time("revise"):
                while self._take_next(answers):
                    pass
            if not (requests := self._next_turns()):  # always so after a sampler that asked for more
                break
        if self._unsampled:
            raise SamplerError(
                f"{type(sampler).__name__} left out {self._unsampled} of the requested answers"
            )
        for question, held in self._held.items():  # of follow-ups that were not all sampled
            group_id, asked, _ = question
            if 0 < len(held) < self._sizes[question]:
                self._submitted(self._runner.submit_group(self._groups[group_id].task, held), asked)

    def answers(self) -> Answers:
        """Waits for the remaining judgements."""
        with self._clock.time("judge"):
            judged = tuple(future.result() for future in self._futures)
        return Answers(judged=judged, followed_up=frozenset(self._followed_up), over_long=self._over_long)

    # Turns

    def _take_next(self, answers: Iterator[Rollout]) -> bool:
        """Takes the next turn, which may be a whole answer. Returns whether there was one."""
        turn = next(answers, None)
        if turn is None:
            return False
        place = place_of(turn)
        episode = self._playing.pop(place, None)
        if episode is None:
            if place not in self._missing:
                raise SamplerError(
                    f"expected every answer once, got answer {turn.index} to a prompt of task "
                    f"'{turn.task_id}', which was not requested or came before: a sampler draws answer i for "
                    "each i of request.indices"
                )
            episode = Episode.first(self._groups[turn.group_id].task, self._missing.pop(place), turn)
        else:
            episode = episode.then(turn)
        if self._player.goes_on(turn):
            self._stepping += 1
            self._when_done(self._player.step(episode), partial(self._go_on, episode))
        else:
            self._finish(episode)
        return True

    def _go_on(self, episode: Episode, step: Step) -> Sequence[SampleRequest]:
        """Goes on with an episode that the environment has replied to, or finishes it."""
        self._stepping -= 1
        episode, request = self._player.next(episode, step)
        if request is None:
            self._finish(episode)
            return ()
        self._playing[place_of(episode.said)] = episode
        return (request,)

    def _next_turns(self) -> list[SampleRequest]:
        """Returns the requests of next turns, once all episodes have their replies."""
        requests: list[SampleRequest] = []
        while self._stepping:
            requests += self._next_event(wait=True)
        return requests

    def _finish(self, episode: Episode) -> None:
        """Submits a whole answer to the judge."""
        rollout = self._player.end(episode)
        asked = (rollout.group_id, rollout.parent_id) in self._asked
        self._unsampled -= asked
        task = self._groups[rollout.group_id].task
        if not self._runner.judge.judges_groups:
            self._submitted([self._runner.submit(task, rollout)], asked)
            return
        question = rollout.group_id, asked, rollout.told
        held = self._held[question]
        held.append(rollout)
        if len(held) == self._sizes[question]:
            held.sort(key=lambda one: (one.parent_id or "", one.index))
            self._submitted(self._runner.submit_group(task, held), asked)

    def _submitted(self, futures: Sequence[Future[Judged]], asked: bool) -> None:
        self._futures += futures
        for future in futures if asked else ():
            self._being_judged += 1
            self._when_done(future, self._follow_ups)

    # Events

    def _when_done(self, future: Future[T], act: Callable[[T], Sequence[SampleRequest]]) -> None:
        future.add_done_callback(lambda done: self._events.put(lambda: act(done.result())))

    def _next_event(self, *, wait: bool) -> Sequence[SampleRequest]:
        """Acts on the next event. Returns what is to be sampled because of it.

        Raises:
            Empty: no event has come yet, and it does not wait.
        """
        if not wait:
            return self._events.get_nowait()()
        with self._clock.time("environment" if self._stepping else "judge"):
            act = self._events.get()
        return act()

    def _more(self, wait: bool) -> list[SampleRequest]:
        """Returns next turns and follow-ups that are ready since the last call (`herl.sampler.More`)."""
        requests: list[SampleRequest] = []
        while self._being_judged or self._stepping:
            try:
                requests += self._next_event(wait=wait and not requests)
            except Empty:
                break
        return requests

    # Follow-ups

    def _follow_ups(self, judged: Judged) -> Sequence[SampleRequest]:
        self._being_judged -= 1
        group_id = judged.rollout.group_id
        attempts = self._attempts[group_id]
        attempts.append(judged)
        self._unjudged[group_id] -= 1
        if self._unjudged[group_id]:
            return ()
        if self._follow_up is None:
            return ()
        attempts.sort(key=lambda attempt: attempt.rollout.index)
        revisions = self._follow_up(replace(self._groups[group_id], attempts=tuple(attempts)))
        self._followed_up.add(group_id)
        self._over_long += revisions.over_long
        self._sizes[group_id, False, False] += sum(request.n for request in revisions.requests)
        self._expect(revisions.requests)
        return revisions.requests

    def _expect(self, requests: Sequence[SampleRequest]) -> None:
        for request in requests:
            for index in request.indices:
                self._missing[request.group_id, request.parent_id, request.told, index] = request
