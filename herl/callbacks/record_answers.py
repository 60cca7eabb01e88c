"""Writes every judged answer of a run to JSONL files, one per line, with its verdicts and reward."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L

from herl.callbacks.base import HerlCallback
from herl.errors import TrainingError, check_at_least
from herl.metrics.collection import best_attempt
from herl.metrics.step import Step
from herl.module import HerlModule
from herl.records.lines import answer_record, write_lines
from herl.rollout.collect import Collection
from herl.rollout.improve import Trajectory

logger = logging.getLogger(__name__)
LINES_PER_FILE = 10_000


class RecordAnswers(HerlCallback):
    """Records the attempts and revisions of every training step, on rank 0 (`herl.records.lines`).

    Args:
        folder: Folder for the files.
        max_answers: Total number of answers to record; None for no limit.
        heldout: Whether to record the plain attempts of each validation too, in files that are named after
            the answers sampled so far. They do not count.
    """

    def __init__(self, folder: str, max_answers: int | None = 100_000, heldout: bool = False) -> None:
        check_at_least("callbacks.record_answers", 0, max_answers=max_answers)
        self.folder = Path(folder)
        self.max_answers = max_answers
        self.heldout = heldout
        self.written = 0

    def state_dict(self) -> dict[str, int]:
        """Returns how many answers the run has recorded."""
        return {"written": self.written}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restores the count."""
        self.written = state_dict["written"]

    def on_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        """Truncates records written after the checkpoint being resumed; those batches are sampled again."""
        if trainer.is_global_zero:
            last = self.folder / f"answers-{self.written // LINES_PER_FILE:05d}.jsonl"
            for path in self.folder.glob("answers-*.jsonl"):
                if path.name > last.name:
                    path.unlink()
            if last.exists():
                with last.open("rb+") as file:
                    file.truncate(sum(map(len, islice(file, self.written % LINES_PER_FILE))))

    def on_step(self, trainer: L.Trainer, module: HerlModule, step: Step) -> None:
        if not trainer.is_global_zero:
            return
        left = None if self.max_answers is None else max(0, self.max_answers - self.written)
        found = list(step_records(step.collection, module.counts, step.faults))
        lines = [json.dumps(one) + "\n" for one in islice(found, left)]
        if left and len(found) >= left:
            logger.warning(
                "%d answers are recorded; later ones are not (callbacks.record_answers.max_answers)",
                self.max_answers,
            )
        while lines:
            room = LINES_PER_FILE - self.written % LINES_PER_FILE
            name = f"answers-{self.written // LINES_PER_FILE:05d}.jsonl"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with (self.folder / name).open("a", encoding="utf-8") as file:
                    file.writelines(lines[:room])
            except OSError as error:
                raise TrainingError(
                    f"cannot record answers in {self.folder / name}: {error}. Free some space and resume"
                ) from error
            self.written += len(lines[:room])
            lines = lines[room:]

    def on_heldout(
        self, trainer: L.Trainer, module: HerlModule, trajectories: tuple[Trajectory, ...]
    ) -> None:
        if self.heldout and trainer.is_global_zero and trajectories:
            path = self.folder / f"heldout-{module.counts['answers_sampled']:08d}.jsonl"
            write_lines(path, (answer_record(one.task, one.answers[0]) for one in trajectories))


def step_records(
    collection: Collection, counts: Mapping[str, int], faults: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields a record for each answer of a step: attempts, revisions, and replayed answers that joined.

    `advantage` is None for an answer that is not a member of its group: a revision that did not join, or an
    attempt that was replaced or could not be judged. `parent_reward` is the draft's reward, or the best
    attempt's for a revision without a draft.

    Args:
        collection: The step.
        counts: Counts of the run so far: optimizer_steps and answers_sampled.
        faults: Faults in the update, by answer id.
    """
    for group in collection.groups:
        members = {member.judged.rollout.id: member for member in group.members}  # a copy comes twice
        ids = [member.judged.rollout.id for member in group.members]
        earned = dict(zip(ids, group.advantages, strict=True))
        reward_of = {one.rollout.id: one.judgement.reward for one in group.attempts}
        best = best_attempt(group)
        again = [member.judged for member in group.members if member.origin == "replay"]
        for judged in (*group.attempts, *group.revisions, *again):
            key = judged.rollout.id
            parent_reward = reward_of.get(judged.rollout.parent_id or "")
            if judged.rollout.told and best:
                parent_reward = best.reward
            yield answer_record(group.task, judged) | {
                "parent_reward": parent_reward,
                "bonus": members[key].bonus if key in members else None,
                "advantage": earned.get(key),
                "fault": (faults or {}).get(key),
                "optimizer_steps": counts["optimizer_steps"],
                "answers_sampled": counts["answers_sampled"],
            }
