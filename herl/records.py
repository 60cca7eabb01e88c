"""Judged answers as lines of JSON, and back: what a run records and `herl inspect` reads.

pandas.read_json("runs/.../records/answers-00000.jsonl", lines=True)
datasets.load_dataset("json", data_files="runs/.../records/*.jsonl")
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from herl.experience import Collection
from herl.improve import Trajectory
from herl.types import Judged, Task


def step_records(
    collection: Collection, counts: Mapping[str, int], faults: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields one record for each answer of a step.

    `advantage` is None for an answer that is no member of its group: revisions that did not join, attempts
    that were replaced or could not be judged.

    Args:
        collection: The step.
        counts: Of the run so far: optimizer_steps and answers_sampled.
        faults: What was wrong in the update, by answer.
    """
    for group in collection.groups:
        members = {member.judged.rollout.id: member for member in group.members}  # a copy comes twice
        ids = [member.judged.rollout.id for member in group.members]
        earned = dict(zip(ids, group.advantages, strict=True))
        reward_of = {one.rollout.id: one.judgement.reward for one in group.attempts}
        for judged in (*group.attempts, *group.revisions):
            key = judged.rollout.id
            yield answer_record(group.task, judged) | {
                "parent_reward": reward_of.get(judged.rollout.parent_id or ""),
                "bonus": members[key].bonus if key in members else None,
                "advantage": earned.get(key),
                "fault": (faults or {}).get(key),
                "optimizer_steps": counts["optimizer_steps"],
                "answers_sampled": counts["answers_sampled"],
            }


def trajectory_records(trajectories: Iterable[Trajectory]) -> Iterator[dict[str, Any]]:
    """Yields one record for each answer: its round, from 0, and whether it is the best of its trajectory."""
    for number, trajectory in enumerate(trajectories):
        reward_of = {one.rollout.id: one.judgement.reward for one in trajectory.answers}
        best = trajectory.best()
        for round, judged in enumerate(trajectory.answers):
            yield answer_record(trajectory.task, judged) | {
                "parent_reward": reward_of.get(judged.rollout.parent_id or ""),
                "trajectory": number,
                "round": round,
                "best": judged is best,
            }


def answer_record(task: Task, judged: Judged) -> dict[str, Any]:
    """Returns what is known of an answer by itself."""
    rollout, judgement = judged.rollout, judged.judgement
    criteria = {criterion.id: criterion for criterion in task.rubric.criteria}
    return {
        "id": rollout.id,
        "task_id": rollout.task_id,
        "parent_id": rollout.parent_id,
        "origin": rollout.origin,
        "request": task.request,
        "text": rollout.text,
        "tokens": len(rollout.token_ids),
        "finish_reason": rollout.finish_reason,
        "policy_version": rollout.policy_version,
        "reward": judgement.reward,
        "verdicts": [
            {
                "criterion_id": v.criterion_id,
                "criterion": criteria[v.criterion_id].wish,
                "weight": criteria[v.criterion_id].weight,
                "met": v.met,
                "fulfilled": None if v.met is None else criteria[v.criterion_id].good(v.met),
                "score": v.score,
                "reason": v.reason,
            }
            for v in judgement.verdicts
        ],
    }


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records to a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
