"""What loggers show beside the curves: an overview page, pictures, histograms, texts and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.tensorboard.writer import SummaryWriter

from herl.callbacks.answer_tables import answer_table, revision_table
from herl.callbacks.base import HerlCallback
from herl.callbacks.gold_judges import GoldJudges
from herl.callbacks.heat_map import heat_map
from herl.callbacks.markup import answer_markdown, revision_markdown
from herl.callbacks.reward_picture import SERIES, reward_picture
from herl.display.may_fail import may_fail
from herl.errors import check_at_least
from herl.hindsight import NoHindsight
from herl.loggers import write_picture, write_table
from herl.metrics.rubric import rewards, rubric_metrics
from herl.metrics.step import Step
from herl.module import HerlModule
from herl.rollout.improve import Trajectory
from herl.trainer_callbacks import callbacks_of
from herl.types import Group, Judged, Task


def _chart(curve: str) -> list[Any]:
    """A chart of one curve: TensorBoard draws all curves of a run in one color, so two could not be told
    apart. The colors tell the runs apart."""
    return ["Multiline", [f"^{curve}$"]]


REWARDS_PICTURE = "0_story/1_rewards"
"""These tags sort before all others: the pictures are the first cards on TensorBoard's first page."""
CRITERIA_PICTURES = {"heldout": "0_story/2_criteria_heldout", "train": "0_story/3_criteria_train"}

LAYOUT: dict[str, dict[str, list[Any]]] = {
    "1 Does it learn?": {
        "Reward: held-out": _chart("heldout/reward"),
        "Reward: attempts": _chart("train/reward"),
        "Reward: revisions": _chart("revision/reward"),
        "Criteria met: held-out": _chart("heldout/criteria_met"),
        "Criteria met: attempts": _chart("train/criteria_met"),
        "Criteria met: revisions": _chart("revision/criteria_met"),
        "Perfect answers: held-out": _chart("heldout/perfect"),
        "Perfect answers: attempts": _chart("train/perfect"),
        "Tokens of an answer: attempts": _chart("train/answer_tokens"),
    },
    "2 Does hindsight help?": {
        "Uplift: reward of a revision minus its draft's": _chart("hindsight/uplift"),
        "Missed criteria mended": _chart("hindsight/mended"),
        "Met criteria broken": _chart("hindsight/broken"),
        "Share of groups revised": _chart("hindsight/revised_groups"),
        "Share of revised groups that a revision joined": _chart("hindsight/accepted"),
        "Number of revisions, over which these are": _chart("hindsight/revisions"),
        "Revisions' share of the gradient": _chart("hindsight/gradient_share"),
        "Share of words that a revision changed": _chart("hindsight/edit_distance"),
        "Share of revisions that copy their draft": _chart("hindsight/copies"),
        "Bonus paid": _chart("bonus/mean"),
        "Groups that only the bonus tells apart": _chart("bonus/alone"),
    },
    "3 Is the policy healthy?": {
        "Entropy": _chart("update/entropy"),
        "KL to the policy before the batch": _chart("update/kl_to_old"),
        "KL to the reference": _chart("update/kl_to_reference"),
        "KL between sampler and trainer": _chart("update/mismatch_kl"),
        "Gradient norm": _chart("update/grad_norm"),
        "Learning rate": _chart("update/learning_rate"),
        "Tokens clipped below": _chart("update/clip_fraction_low"),
        "Tokens clipped above": _chart("update/clip_fraction_high"),
        "Share of groups without signal": _chart("train/zero_signal_groups"),
        "Groups in which a criterion is fulfilled only by answers with a negative advantage": _chart(
            "criteria/suppressed"
        ),
        "Number of groups, over which these are": _chart("train/groups"),
        "Truncated attempts": _chart("train/truncated"),
        "Abstained verdicts": _chart("train/abstained"),
    },
    "4 Where does the time go?": {
        "Seconds of a step": _chart("time/step"),
        **{
            f"Seconds of a step: {phase}": _chart(f"time/{phase}")
            for phase in ("sample", "judge", "revise", "update", "refresh", "probe")
        },
        "Tokens per second: sampled": _chart("throughput/sampled_tokens_per_second"),
        "Tokens per second: trained": _chart("throughput/trained_tokens_per_second"),
    },
}
"""Sections and charts of TensorBoard's page "Custom Scalars"."""
GOLD_LAYOUT: dict[str, dict[str, list[Any]]] = {
    "5 Is the judge gamed?": {
        "Reward of gold judges: held-out": _chart("gold/.*/reward"),
        "Training judge's reward minus that of gold judges": _chart("gaming/gap"),
        "How far this has opened": _chart("gaming/opened"),
        "Its standard error": _chart("gaming/opened_error"),
        "Correlation of reward with length: training judge": _chart("gaming/length_correlation"),
        "Correlation of reward with length: gold judges": _chart("gold/.*/length_correlation"),
    },
}
"""The section of runs with gold judges."""
EPISODES_LAYOUT: dict[str, dict[str, list[Any]]] = {
    "6 What happens in episodes?": {
        "Turns of an attempt": _chart("episodes/turns"),
        "Turns of an answer: held-out": _chart("heldout/turns"),
        "Calls of an attempt": _chart("episodes/calls"),
        "Calls of an answer: held-out": _chart("heldout/calls"),
        "Share of calls that fail": _chart("episodes/failed_calls"),
        "Tokens of replies that an attempt reads": _chart("episodes/reply_tokens"),
        "Attempts whose environment failed": _chart("episodes/failed"),
        "Attempts cut off at the limit on turns": _chart("episodes/cut_by_turns"),
        "Attempts cut off at a limit on tokens": _chart("episodes/cut_by_length"),
        "Attempts cut off at the limit on seconds": _chart("episodes/cut_by_seconds"),
        "Seconds of a step: environment": _chart("time/environment"),
    },
}
"""The section of runs with an environment that replies."""


def layout(module: HerlModule) -> dict[str, dict[str, list[Any]]]:
    """Returns `LAYOUT` without the charts for which this run has no curves. `EPISODES_LAYOUT` is added if it
    plays episodes."""
    absent = []
    if not module.loss.needs_reference:
        absent.append("^update/kl_to_reference")
    if isinstance(module.stages.hindsight, NoHindsight):
        absent += ["^hindsight/", "^revision/", "^bonus/"]
    kept = {
        section: {
            title: chart for title, chart in charts.items() if not chart[1][0].startswith(tuple(absent))
        }
        for section, charts in LAYOUT.items()
    }
    found = {section: charts for section, charts in kept.items() if charts}
    return found | (EPISODES_LAYOUT if module.stages.environment.replies else {})


class Dashboard(HerlCallback):
    """Writes to the run's loggers on rank 0, each in its own way.

    TensorBoard gets a picture of the rewards, heat maps of the criteria, histograms, revisions with their
    drafts, and the answers to a few held-out prompts, always the same ones. W&B, MLflow and Trackio get the
    picture, a table of answers and a table of drafts with their revisions. Model and judge text is shown
    literally, never as markup. Other loggers get curves only. What cannot be written costs a warning.

    Args:
        every_n_batches: Batches between pictures, texts and tables of revisions during training.
        heldout_prompts: Held-out prompts whose answers TensorBoard shows after each validation.
        max_criteria: Heat maps are drawn for at most this many criteria.
        table_rows: Maximum number of rows in a table; 0 for no tables.
    """

    def __init__(
        self,
        every_n_batches: int = 20,
        heldout_prompts: int = 3,
        max_criteria: int = 64,
        table_rows: int = 32,
    ) -> None:
        check_at_least("callbacks.dashboard", 1, every_n_batches=every_n_batches)
        check_at_least(
            "callbacks.dashboard", 0,
            heldout_prompts=heldout_prompts, max_criteria=max_criteria, table_rows=table_rows,
        )  # fmt: skip
        self.every_n_batches = every_n_batches
        self.heldout_prompts = heldout_prompts
        self.max_criteria = max_criteria
        self.table_rows = table_rows
        self.history: dict[str, list[tuple[int, dict[str, float]]]] = {"train": [], "heldout": []}
        self.rewards: dict[str, list[tuple[int, float, int]]] = {name: [] for name in SERIES}
        """(x, mean reward, number of answers) of each batch and validation."""
        self.batches = 0
        self._heldout: tuple[Trajectory, ...] = ()  # from the last validation
        self._shown = -1  # x of the last held-out answers
        self._told: set[str] = set()  # what could not be written

    def state_dict(self) -> dict[str, Any]:
        """Returns the rewards and the shares by criterion so far, since pictures show the whole run."""
        return {"history": self.history, "rewards": self.rewards, "batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.history, self.batches = state_dict["history"], state_dict["batches"]
        self.rewards = state_dict["rewards"]

    def on_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        with may_fail("the dashboard's layout", self._told):
            for writer in _writers(trainer):
                gold = bool(callbacks_of(trainer, GoldJudges))
                writer.add_custom_scalars(layout(module) | (GOLD_LAYOUT if gold else {}))

    def on_step(self, trainer: L.Trainer, module: HerlModule, step: Step) -> None:
        groups, place = step.collection.groups, module.counts[module.log_over]
        self._remember("train", place, step.metrics)
        self._add("train", place, (one for group in groups for one in group.attempts))
        self._add("revision", place, (one for group in groups for one in group.revisions))
        self.batches += 1
        if (self.batches - 1) % self.every_n_batches:
            return
        with may_fail("the pictures of the dashboard", self._told):
            self._draw(trainer, module)
        with may_fail("the texts of the dashboard", self._told):
            self._write_step(trainer, module, groups, place)

    def _write_step(
        self, trainer: L.Trainer, module: HerlModule, groups: Sequence[Group], place: int
    ) -> None:
        attempts = [one for group in groups for one in group.attempts]
        lengths = [len(one.rollout.token_ids) - one.rollout.thinking_tokens for one in attempts]
        thoughts = [one.rollout.thinking_tokens for one in attempts if one.rollout.thinking_tokens]
        pairs = sorted(_revisions(groups), key=lambda pair: _gain(*pair))
        drafts = revision_table(_both_ends(pairs, self.table_rows), module.log_over, place)
        write_table(trainer, "revision/drafts", drafts, place)
        for writer in _writers(trainer):
            if got := rewards(attempts):
                writer.add_histogram("distribution/reward", np.array(got), place)
            if lengths:  # a batch may be empty, if all its prompts are too long
                writer.add_histogram("distribution/answer_tokens", np.array(lengths), place)
            if thoughts:
                writer.add_histogram("distribution/thinking_tokens", np.array(thoughts), place)
            if pairs:
                if _gain(*pairs[-1]) > 0:
                    writer.add_text("revision/most_improved", revision_markdown(*pairs[-1]), place)
                if _gain(*pairs[0]) < 0:
                    writer.add_text("revision/most_broken", revision_markdown(*pairs[0]), place)

    def on_heldout(
        self, trainer: L.Trainer, module: HerlModule, trajectories: tuple[Trajectory, ...]
    ) -> None:
        self._heldout, place = trajectories, module.counts[module.log_over]
        plain = [(one.task, one.answers[0]) for one in trajectories]
        self._remember("heldout", place, rubric_metrics("heldout", plain))
        self._add("heldout", place, (judged for _, judged in plain))
        if self._shown < place:
            with may_fail("the held-out answers of the dashboard", self._told):
                self._write_heldout(trainer, module, trajectories, place)
        self._shown = place
        if trainer.state.fn != TrainerFn.FITTING:
            with may_fail("the pictures of the dashboard", self._told):
                self._draw(trainer, module)

    def _write_heldout(
        self, trainer: L.Trainer, module: HerlModule, trajectories: Sequence[Trajectory], place: int
    ) -> None:
        first_of = {one.task.id: one for one in reversed(trajectories)}
        first = list(reversed(first_of.values()))
        answers = answer_table(first[: self.table_rows], module.log_over, place)
        write_table(trainer, "heldout/answers", answers, place)
        for writer in _writers(trainer):
            for number, one in enumerate(first[: self.heldout_prompts], 1):
                text = answer_markdown(one.task, one.answers[0])
                writer.add_text(f"heldout/prompt_{number}", text, place)

    def _remember(self, family: str, place: int, metrics: Mapping[str, float]) -> None:
        prefix = f"{family}_criterion/"
        shares = {
            name.removeprefix(prefix): share for name, share in metrics.items() if name.startswith(prefix)
        }
        past = self.history[family]
        if shares and len(shares) <= self.max_criteria and (not past or past[-1][0] < place):
            past.append((place, shares))

    def _add(self, name: str, place: int, answers: Iterable[Judged]) -> None:
        got, past = rewards(answers), self.rewards[name]
        if got and (not past or past[-1][0] < place):
            past.append((place, fmean(got), len(got)))

    def _draw(self, trainer: L.Trainer, module: HerlModule) -> None:
        if not trainer.is_global_zero or not trainer.loggers:
            return
        over, place = module.log_over.replace("_", " "), module.counts[module.log_over]
        pictures = {}
        if max(map(len, self.rewards.values())) > 1:
            pictures[REWARDS_PICTURE] = reward_picture(self.rewards, over)
        for family, past in self.history.items():
            if len(past) > 1:
                title = f"{family}: share of answers that fulfill each criterion"
                pictures[CRITERIA_PICTURES[family]] = heat_map(past, title, over)
        for tag, picture in pictures.items():
            write_picture(trainer, tag, picture, place)
            for writer in _writers(trainer):
                writer.add_image(tag, picture, place, dataformats="HWC")


def _writers(trainer: L.Trainer) -> list[SummaryWriter]:
    """The run's TensorBoard writers; empty except on rank 0."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _revisions(groups: Iterable[Group]) -> Iterator[tuple[Task, Judged, Judged]]:
    """Yields (task, draft, revision) wherever there is a draft and both answers could be judged."""
    for group in groups:
        drafts: Mapping[str | None, Judged] = {one.rollout.id: one for one in group.attempts}
        for revision in group.revisions:
            draft = drafts.get(revision.rollout.parent_id)
            if draft is not None and len(rewards([draft, revision])) == 2:
                yield group.task, draft, revision


def _gain(task: Task, draft: Judged, revision: Judged) -> float:
    before, after = rewards([draft, revision])
    return after - before


def _both_ends(pairs: list[tuple[Task, Judged, Judged]], limit: int) -> list[tuple[Task, Judged, Judged]]:
    """The pairs that gained most, then those that lost most, at most `limit` together."""
    if len(pairs) > limit:
        most = (limit + 1) // 2
        pairs = pairs[: limit - most] + pairs[len(pairs) - most :]
    return pairs[::-1]
