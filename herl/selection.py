"""Stage 6: decides which revisions join the group, and where. A pure function, chosen by `selection`.

It takes attempts and revisions, whose rewards are never None, and returns the group's members in order.
Rewards are compared without the bonus.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Literal

from herl.types import Judged, Member, Task
from herl.types.answer import TIE

Placement = Literal["append", "replace_worst", "replace_random"]
Joins = Literal["better", "new"]


def form_group(
    task: Task,
    attempts: Sequence[Judged],
    revisions: Sequence[Judged],
    bonuses: Mapping[str, float],
    seed: int,
    *,
    top_n: int = 1,
    strict: bool = True,
    joins: Joins = "better",
    placement: Placement = "replace_worst",
    fallback_copies: bool = False,
    max_quote: int | None = None,
) -> list[Member]:
    """Returns the members of the final group.

    Args:
        task: The prompt and its rubric.
        attempts: The attempts at the prompt.
        revisions: Revisions of some attempts, and replayed answers.
        bonuses: Bonus of each revised attempt, by rollout id.
        seed: Decides the slots of `replace_random`.
        top_n: Maximum number of revisions that join.
        strict: Whether a revision must beat the best attempt or may tie with it. Allowing ties lets in
            verbatim copies of the draft.
        joins: `better` admits revisions by their reward alone. With `new` a revision may also join because it
            fulfills a criterion with a weight that no attempt does, whatever its reward; the best still come
            first. It needs `advantages=by_criterion`, which never gives such a revision a negative advantage.
        placement: `append` grows the group, `replace_worst` overwrites the worst attempts,
            `replace_random` overwrites any of them, even the best (reference code).
        fallback_copies: Whether a copy of the best attempt overwrites a random slot if revisions were made
            but none qualifies (reference code).
        max_quote: Most words in a row of a criterion that a revision may repeat if the conversation lacks
            them; None for no limit. One that repeats more does not join, since the policy would learn to
            recite a rubric that it cannot see. A phrase that a criterion asks for must fit.

        The revision beats the best attempt and replaces the worst. The draft keeps its bonus.

    >>> from herl.testing import make_judged, make_task
    >>> attempts = [make_judged(reward, id=f"a{i}") for i, reward in enumerate([0.6, 0.2, 0.4])]
    >>> revision = make_judged(0.8, id="r", parent_id="a0")
    >>> group = form_group(make_task(), attempts, [revision], {"a0": 0.01}, seed=0)
    >>> [(member.judged.rollout.id, member.reward, member.bonus) for member in group]
    [('a0', 0.6, 0.01), ('r', 0.8, 0.0), ('a2', 0.4, 0.0)]
    >>> tie = make_judged(0.6, id="r", parent_id="a0")
    >>> [m.judged.rollout.id for m in form_group(make_task(), attempts, [tie], {}, seed=0)]
    ['a0', 'a1', 'a2']

    The attempts say nothing of the river, which is worth 2 of 5 points.

    >>> attempts = [make_judged(0.6, id="a0", met={"fish": True, "river": False})]
    >>> new = make_judged(0.4, id="r", parent_id="a0", met={"fish": False, "river": True})
    >>> form_group(make_task(), attempts, [new], {}, seed=0, joins="new", placement="append")[1].reward
    0.4
    """
    members = [
        Member(judged=judged, reward=judged.reward, bonus=bonuses.get(judged.rollout.id, 0.0))
        for judged in attempts
    ]
    if not members or not revisions:
        return members
    best = max(member.reward for member in members)
    verdicts = [attempt.judgement.verdicts for attempt in attempts]
    weighty = {criterion.id for criterion in task.rubric.criteria if criterion.weight}
    in_own_words = [
        revision
        for revision in revisions
        if max_quote is None or not task.quotes(revision.rollout.text, max_quote + 1)
    ]
    qualified = [
        revision
        for revision in in_own_words
        if revision.reward > best + TIE
        or (not strict and revision.reward >= best - TIE)
        or (joins == "new" and weighty & task.rubric.fulfilled_first(revision.judgement.verdicts, verdicts))
    ]
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
    """Returns the best and worst answers, attempts and revisions alike; bonuses are not paid.

    The best alone gives rejection sampling; the best and the worst form a preference pair.

    Args:
        task: Not used.
        attempts: The attempts at the prompt.
        revisions: Revisions of some attempts, and replayed answers.
        bonuses: Not used.
        seed: Not used.
        best: Number of best answers to keep.
        worst: Number of worst answers to keep. If there are too few answers for both, none are kept.
        at_least: Minimum reward of answers to keep; None for no limit.

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
