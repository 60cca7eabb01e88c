"""Writes every judged answer of a run to JSONL files, one line each, with its verdicts and its reward.

pandas.read_json("runs/.../records/answers-00000.jsonl", lines=True)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L

from herl.errors import check_at_least
from herl.experience import Collection
from herl.module import HerlModule
from herl.types import Judged

LINES_PER_FILE = 10_000


class RecordAnswers(L.Callback):
    """Records attempts and revisions of every training step, on rank 0.

    Args:
        folder: Where the files go.
        most: Answers to record in all; None for no limit.
    """

    def __init__(self, folder: str, most: int | None = 100_000) -> None:
        check_at_least("callbacks.record_answers", 0, most=most)
        self.folder = Path(folder)
        self.most = most
        self.written = 0

    def state_dict(self) -> dict[str, int]:
        """Returns how many answers the run has recorded."""
        return {"written": self.written}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on counting."""
        self.written = state_dict["written"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, HerlModule)
        assert pl_module.collection is not None
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for line in lines(pl_module.collection, pl_module.counts["optimizer_steps"]):
            if self.most is not None and self.written >= self.most:
                return
            name = f"answers-{self.written // LINES_PER_FILE:05d}.jsonl"
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.written += 1


def lines(collection: Collection, optimizer_steps: int) -> Iterator[dict[str, Any]]:
    """Yields one record for each answer of a step.

    `advantage` is None for an answer that is no member of its group: revisions that did not join, attempts
    that were replaced or could not be judged.
    """
    for group in collection.groups:
        paid = dict(zip((m.judged.rollout.id for m in group.members), group.members, strict=True))
        earned = dict(zip((m.judged.rollout.id for m in group.members), group.advantages, strict=True))
        for judged in (*group.attempts, *group.revisions):
            key = judged.rollout.id
            yield _record(judged) | {
                "request": group.task.request,
                "bonus": paid[key].bonus if key in paid else None,
                "advantage": earned.get(key),
                "optimizer_steps": optimizer_steps,
            }


def _record(judged: Judged) -> dict[str, Any]:
    rollout, judgement = judged.rollout, judged.judgement
    return {
        "id": rollout.id,
        "task_id": rollout.task_id,
        "parent_id": rollout.parent_id,
        "origin": rollout.origin,
        "text": rollout.text,
        "tokens": len(rollout.token_ids),
        "finish_reason": rollout.finish_reason,
        "policy_version": rollout.policy_version,
        "reward": judgement.reward,
        "verdicts": [
            {"criterion_id": v.criterion_id, "met": v.met, "score": v.score, "reason": v.reason}
            for v in judgement.verdicts
        ],
    }
