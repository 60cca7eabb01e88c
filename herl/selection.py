"""Stage 6: which revisions join the group, and where. A pure function, chosen by `selection`.

The group goes in as attempts and revisions, with rewards that are never None, and comes out as its
members in order. Rewards are compared without the bonus.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Literal

from herl.types import Judged, Member, Task

Placement = Literal["append", "replace_worst", "replace_random"]


def form_group(
    task: Task,
    attempts: Sequence[Judged],
    revisions: Sequence[Judged],
    bonuses: Mapping[str, float],
    seed: int,
    *,
    top_n: int = 1,
    strict: bool = True,
    placement: Placement = "replace_worst",
    fallback_copies: bool = False,
) -> list[Member]:
    """Returns the members of the final group.

    Args:
        task: The prompt and its rubric.
        attempts: The policy's own answers to the prompt.
        revisions: The revisions of some of them, and replayed answers.
        bonuses: Bonus by rollout id of the revised attempts.
        seed: Decides the slots of `replace_random`.
        top_n: Revisions that may join.
        strict: Whether a revision must beat the best attempt, or may tie with it. A tie lets in
            verbatim copies of the draft.
        placement: `append` grows the group, `replace_worst` overwrites the worst attempts,
            `replace_random` any of them, even the best (reference code).
        fallback_copies: Whether, when revisions were made but none qualifies, a random slot is
            overwritten by a copy of the best attempt (reference code).

    The revision beats the best attempt and takes the place of the worst. The draft keeps its bonus.

    >>> from herl.testing import make_judged, make_task
    >>> attempts = [make_judged(reward, id=f"a{i}") for i, reward in enumerate([0.6, 0.2, 0.4])]
    >>> revision = make_judged(0.8, id="r", parent_id="a0")
    >>> group = form_group(make_task(), attempts, [revision], {"a0": 0.01}, seed=0)
    >>> [(member.judged.rollout.id, member.reward, member.bonus) for member in group]
    [('a0', 0.6, 0.01), ('r', 0.8, 0.0), ('a2', 0.4, 0.0)]
    >>> tie = make_judged(0.6, id="r", parent_id="a0")
    >>> [m.judged.rollout.id for m in form_group(make_task(), attempts, [tie], {}, seed=0)]
    ['a0', 'a1', 'a2']
    """
    members = [
        Member(judged=judged, reward=judged.reward, bonus=bonuses.get(judged.rollout.id, 0.0))
        for judged in attempts
    ]
    if not members or not revisions:
        return members
    best = max(member.reward for member in members)
    qualified = [r for r in revisions if r.reward > best or (not strict and r.reward >= best)]
    chosen = sorted(qualified, key=attrgetter("reward"), reverse=True)[:top_n]
    joining = [Member(judged=revision, reward=revision.reward) for revision in chosen]
    made = any(revision.rollout.origin == "hindsight" for revision in revisions)
    if not joining and made and fallback_copies:
        best_member = max(members, key=lambda one: (one.reward, one.judged.fulfilled_count(task)))
        joining = [replace(best_member)]
        placement = "replace_random"
    return _place(members, joining, placement, seed)


def keep_ranked(
    task: Task,
    attempts: Sequence[Judged],
    revisions: Sequence[Judged],
    bonuses: Mapping[str, float],
    seed: int,
    *,
    best: int = 1,
    worst: int = 0,
    at_least: float | None = None,
) -> list[Member]:
    """Returns the best and the worst answers, attempts and revisions alike; bonuses are not paid.

    The best one alone is rejection sampling, the best and the worst are a pair to prefer by.

    Args:
        task: Not used.
        attempts: The policy's own answers to the prompt.
        revisions: The revisions of some of them, and replayed answers.
        bonuses: Not used.
        seed: Not used.
        best: Best answers that stay.
        worst: Worst answers that stay. Where there are not enough for both, nothing stays.
        at_least: Reward under which no answer stays; None for no limit.

    >>> from herl.testing import make_judged, make_task
    >>> attempts = [make_judged(reward, id=f"a{i}") for i, reward in enumerate([0.6, 0.2, 0.4])]
    >>> [one.reward for one in keep_ranked(make_task(), attempts, [], {}, seed=0)]
    [0.6]
    >>> [one.reward for one in keep_ranked(make_task(), attempts, [], {}, seed=0, worst=1)]
    [0.6, 0.2]
    >>> keep_ranked(make_task(), attempts, [], {}, seed=0, at_least=0.7)
    []
    """
    ranked = [
        Member(judged=judged, reward=judged.reward)
        for judged in sorted([*attempts, *revisions], key=attrgetter("reward"), reverse=True)
        if at_least is None or judged.reward >= at_least
    ]
    if worst and len(ranked) < best + worst:
        return []
    return ranked[:best] + ranked[len(ranked) - worst :]


def _place(members: list[Member], joining: list[Member], placement: Placement, seed: int) -> list[Member]:
    if placement == "append":
        return members + joining
    slots = list(range(len(members)))
    if placement == "replace_worst":
        slots.sort(key=lambda slot: members[slot].reward)
    else:
        random.Random(seed).shuffle(slots)
    placed = list(members)
    for slot, member in zip(slots, joining, strict=False):
        placed[slot] = member
    return placed
