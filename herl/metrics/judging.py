"""Metrics of the judge: its time, its cost, and its abstentions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from herl.types import Judgement

COUNTED = (
    "calls",
    "tokens",
    "cost",
    "missing",
    "check_errors",
    "no_answer",
    "mostly_cannot_tell",
)


def judge_metrics(judgements: Sequence[Judgement]) -> dict[str, float]:
    """Returns the judge metrics of one rollout batch. Apart from times, zeros are left out.

    Times are seconds per answer, without the wait for a free slot. `judge/cache_hit_share` is the share of
    questions answered without a separate call; `judge/agreement` is the share of votes that agree with the
    verdict.
    """
    if not judgements:
        return {}
    total: Counter[str] = Counter()
    for judgement in judgements:
        total.update(judgement.usage)
    seconds = [judgement.usage.get("seconds", 0.0) for judgement in judgements]
    numbers = {"seconds": fmean(seconds), "seconds_max": max(seconds)}
    numbers |= {name: total[name] for name in COUNTED if total[name]}
    numbers |= {name: n for name, n in total.items() if name.startswith(("fault_", "abstained_"))}
    answered_for_nothing = total["cache_hits"] + total["shared"]
    faults = sum(n for name, n in total.items() if name.startswith("fault_"))
    asked = answered_for_nothing + max(0, total["calls"] - faults)
    if asked:
        numbers["cache_hit_share"] = answered_for_nothing / asked
    if total["votes"]:
        numbers["agreement"] = total["votes_agreeing"] / total["votes"]
    return {f"judge/{name}": float(number) for name, number in numbers.items()}
