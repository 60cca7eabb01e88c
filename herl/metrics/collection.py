"""Metrics of one rollout batch: attempts, revisions, hindsight, bonus, judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from rapidfuzz.distance import Levenshtein

from herl.hindsight.candidates import top_k
from herl.metrics.episodes import episode_metrics
from herl.metrics.judging import judge_metrics
from herl.metrics.rubric import fulfilled, is_perfect, rewards, rubric_metrics
from herl.rollout.collect import Collection
from herl.types import Experience, Group, Judged, Rollout, Task


def collection_metrics(collection: Collection, policy_version: int = 0) -> dict[str, float]:
    """Returns the metrics of one rollout batch. A mean over nothing is left out, never reported as 0.

    Args:
        collection: The batch.
        policy_version: Optimizer steps the trainer had taken when the batch was sampled.
    """
    groups = collection.groups
    attempts = [(group.task, judged) for group in groups for judged in group.attempts]
    revisions = [(group.task, judged) for group in groups for judged in group.revisions]
    revised = [group for group in groups if group.revisions]
    lists: dict[str, Sequence[float]] = {
        "train/reward_best": [max(r) for group in groups if (r := rewards(group.attempts))],
        "train/perfect_groups": [
            any(is_perfect(group.task, one) for one in group.attempts) for group in groups
        ],
        "train/zero_signal_groups": [not any(group.advantages) for group in groups],
        "criteria/suppressed": [suppressed for group in groups for suppressed in _suppresses(group)],
        "train/identical_groups": [
            len(group.attempts) > 1
            and all(one.rollout.sequence == group.attempts[0].rollout.sequence for one in group.attempts)
            for group in groups
        ],
        "hindsight/revised_groups": [bool(group.revisions) for group in groups],
        "hindsight/accepted": [any(m.origin == "hindsight" for m in group.members) for group in revised],
        "sampler/staleness": [policy_version - judged.rollout.policy_version for _, judged in attempts],
        "bonus/mean": [m.bonus for group in groups for m in group.members if m.bonus != 0.0],
        "replay/recalled": [bool(group.replayed) for group in groups] * any(g.replayed for g in groups),
        "replay/joined": [
            any(m.origin == "replay" for m in group.members) for group in groups if group.replayed
        ],
        "bonus/alone": [group.bonus_alone for group in groups if group.members],
        "bonus/paid": [m.bonus != 0.0 for group in groups for m in group.members if m.origin == "policy"],
    }
    if revised:
        lists |= changes(revised)
        lists["hindsight/gradient_share"] = _gradient_share(collection.experiences)
    means = {name: fmean(values) for name, values in lists.items() if values}
    means["train/groups"] = float(len(groups))  # a share over few groups says little
    if collection.refilled is not None:
        flat = sum(not any(group.advantages) for group in groups)
        means |= {
            "refill/prompts": float(collection.refilled),
            "refill/missing": float(flat - collection.refilled),
        }
    if collection.skipped is not None:
        names = ("solved", "hopeless")
        means |= {f"difficulty/{name}": float(collection.skipped.get(name, 0)) for name in names}
    if collection.episodes:
        played = [judged.rollout for _, judged in attempts]
        means |= {f"episodes/{name}": value for name, value in episode_metrics(played).items()}
    means["hindsight/revisions"] = float(len(revisions))
    means |= {f"train/dropped_{name}": float(n) for name, n in collection.dropped.items() if n}
    means |= rubric_metrics("train", attempts) | rubric_metrics("revision", revisions)
    return means | judge_metrics([judged.judgement for _, judged in (*attempts, *revisions)])


def collection_counts(collection: Collection) -> dict[str, int]:
    """Returns the counts that one rollout batch adds to those of the run."""
    revisions = [one for group in collection.groups for one in group.revisions]
    answers = [*revisions, *(one for group in collection.groups for one in group.attempts)]
    return {
        "batches": 1,
        "prompts": len(collection.groups),
        "answers_sampled": len(answers),
        "revisions_sampled": len(revisions),
        "tokens_sampled": sum(len(one.rollout.token_ids) for one in answers),
    }


def progress_metrics(counts: Mapping[str, int], epoch: int) -> dict[str, float]:
    """Returns metrics of the run's progress.

    Args:
        counts: Counts of the run so far.
        epoch: Index of the current epoch, from 0.
    """
    numbers = {f"progress/{name}": float(count) for name, count in sorted(counts.items())}
    return numbers | {"progress/epoch": float(epoch)}


def changes(groups: Sequence[Group]) -> dict[str, list[float]]:
    """Values for the curves of revisions; see the table of curves in the README.

    A revision without a draft is compared with the best attempt, which is the draft of others by default.
    """
    values: dict[str, list[float]] = {
        f"hindsight/{name}": [] for name in ("uplift", "mended", "broken", "copies", "edit_distance")
    }
    for group in groups:
        drafts = {judged.rollout.id: judged for judged in group.attempts}
        best = best_attempt(group)
        for revision in group.revisions:
            parent = revision.rollout.parent_id
            draft = best if parent is None else drafts[parent]
            if draft is None:
                continue
            before, after = rewards([draft]), rewards([revision])
            if before and after:
                values["hindsight/uplift"].append(after[0] - before[0])
            for name, happened in _turned(group.task, draft, revision):
                values[f"hindsight/{name}"].append(happened)
            if not (parent is not None and draft.rollout.has_answer and revision.rollout.has_answer):
                continue
            texts = _said(draft.rollout), _said(revision.rollout)
            words = texts[0].split(), texts[1].split()
            values["hindsight/copies"].append(texts[0].strip() == texts[1].strip())
            values["hindsight/edit_distance"].append(Levenshtein.normalized_distance(*words))
    return values


def _said(rollout: Rollout) -> str:
    """What the policy said in all turns."""
    return "\n".join([*(turn.text for turn in rollout.turns), rollout.text])


def best_attempt(group: Group) -> Judged | None:
    """Returns the attempt with the highest reward, or None if none could be judged."""
    judged = [attempt for attempt in group.attempts if attempt.has_reward]
    return top_k(group.task, judged)[0] if judged else None


def _turned(task: Task, draft: Judged, revision: Judged) -> list[tuple[str, bool]]:
    """Returns ("mended", whether) for each criterion that the draft missed, else ("broken", whether)."""
    before, after = fulfilled(task, draft), fulfilled(task, revision)
    both = [(before[key], after[key]) for key in before if key in after]
    return [("broken", not now) if then else ("mended", now) for then, now in both]


def _suppresses(group: Group) -> list[bool]:
    """Whether the policy unlearns a criterion: all members that fulfill it have a negative advantage.

    Empty if no member has a verdict.
    """
    pushed_down: dict[str, bool] = {}
    judged = False
    for member, advantage in zip(group.members, group.advantages, strict=True):
        good = fulfilled(group.task, member.judged)
        judged = judged or bool(good)
        for name in (name for name, met in good.items() if met):
            pushed_down[name] = pushed_down.get(name, True) and advantage < 0.0
    return [any(pushed_down.values())] if judged else []


def _gradient_share(experiences: Sequence[Experience]) -> list[float]:
    """Share of revisions, new and replayed, in the sum of |advantage| x tokens over all experiences."""
    pulls = [(abs(e.advantage) * len(e.rollout.token_ids), e.origin != "policy") for e in experiences]
    total = sum(pull for pull, _ in pulls)
    return [sum(pull for pull, revision in pulls if revision) / total] if total else []
