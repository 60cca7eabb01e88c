"""Whether hindsight can help, measured before any training.

How often does one answer that was written with hindsight beat the best attempt, and how often would one more
plain attempt? Training on revisions cannot teach what no revision finds. Where a request states its whole
rubric, there is little new to tell, and revisions beat the best attempt hardly more often than plain attempts
do. Where the rubric is hidden, they do so in many groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from herl.evaluation.intervals import RESAMPLES
from herl.types import Group
from herl.types.answer import TIE

HELPS = 0.1
"""Lead of hindsight over a plain attempt, in groups, above which it is said to help. A rule of thumb."""


def shares(group: Group) -> tuple[float, float] | None:
    """Returns the chances to beat a group's best attempt: of an answer with hindsight, of one more attempt.

    The first is the share of the group's revisions that beat the best of its n attempts; 0 if none was
    written, as for a group whose best attempt is perfect. The second is the chance of an attempt to beat the
    n - 1 others: one more would have to beat n, so it is a little too high, and it costs no further answer.

    Returns:
        The two, in [0, 1]; None if fewer than two attempts, or none of the revisions, could be judged.

    >>> from herl.testing import make_group, make_judged
    >>> attempts = [make_judged(reward, id=f"a{i}") for i, reward in enumerate([0.2, 0.6, 0.4, 0.2])]
    >>> revisions = [make_judged(reward, id=f"r{reward}", parent_id="a1") for reward in (0.8, 0.6)]
    >>> shares(make_group(*attempts, *revisions))
    (0.5, 0.25)
    """
    attempts = [one.reward for one in group.attempts if one.has_reward]
    revisions = [one.reward for one in group.revisions if one.has_reward]
    if len(attempts) < 2 or (group.revisions and not revisions):
        return None
    best = max(attempts)
    beaten = fmean(reward > best + TIE for reward in revisions) if revisions else 0.0
    alone = sum(best - reward <= TIE for reward in attempts) == 1
    return beaten, alone / len(attempts)


def uplift(groups: Iterable[Group], seed: int = 0) -> dict[str, Any] | None:
    """Returns what hindsight finds that plain attempts do not.

    Args:
        groups: Groups of the untrained policy, with their revisions.
        seed: Seed of the resampling.

    Returns:
        {"groups", "revision", "attempt", "difference", "says"}: the number of groups, the means of `shares`
        and of their difference, each with the ends of its 95 % interval by bootstrap over groups, and one
        sentence. None if no group has revisions.
    """
    listed = list(groups)
    found = [pair for pair in map(shares, listed) if pair is not None]
    if not found or not any(group.revisions for group in listed):
        return None
    columns = np.array([(revision, attempt, revision - attempt) for revision, attempt in found])
    count = len(columns)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.percentile(weights @ columns / count, [2.5, 97.5], axis=0)
    report: dict[str, Any] = {"groups": count}
    for place, name in enumerate(("revision", "attempt", "difference")):
        report[name] = [
            round(float(value), 3) for value in (columns[:, place].mean(), low[place], high[place])
        ]
    return report | {"says": sentence(report)}


def sentence(report: Mapping[str, Any]) -> str:
    """Returns in one sentence what an `uplift` means."""
    _, low, high = report["difference"]
    if low > HELPS:
        verdict = "Hindsight helps here"
    elif high < HELPS:
        verdict = "Hindsight will hardly help here"
    else:
        verdict = "Too few prompts to say whether hindsight helps here"
    return (
        f"{verdict}: one answer with it beats the best attempt in {_percent(report['revision'])} of "
        f"{report['groups']} groups, one more plain attempt in {_percent(report['attempt'])}."
    )


def _percent(share: Sequence[float]) -> str:
    mean, low, high = (round(100 * value) for value in share)
    return f"{mean} % ({low} to {high})"
