"""Evaluates answers and their revisions, by one judge or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import chain
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from herl.display.picture import literal_text
from herl.distributed import gather_results, rank, world_size
from herl.evaluation.intervals import Row, evaluation_rows, find_row
from herl.judge import Judge, JudgeRunner
from herl.metrics.rubric import fulfilled
from herl.records.lines import answer_record
from herl.rollout.improve import Trajectory
from herl.types import Judged, Rollout, Task


def evaluate(
    trajectories: Sequence[Trajectory],
    rounds: int,
    further_judges: Mapping[str, Judge] | None = None,
    seed: int = 0,
    runner_of: Callable[[Judge], JudgeRunner] = JudgeRunner,
) -> list[Row]:
    """Returns the results of the plain attempts and of the best answers after each revision.

    Args:
        trajectories: Attempts with their revisions.
        rounds: Maximum number of revisions of each attempt.
        further_judges: Judges by name that score the same answers. They do not guide or choose revisions,
            and they see hidden criteria too (`Task.whole`).
        seed: Seed of the confidence intervals.
        runner_of: Makes the runner of a further judge; `JudgeRunner.for_judge` shares the run's budget.
    """
    rows: list[Row] = []
    tasks = [one.task for one in trajectories]
    whole = [task.whole for task in tasks]
    for revisions in range(rounds + 1):
        best = [one.best(revisions) for one in trajectories]
        rows += evaluation_rows(zip(tasks, best, strict=True), revisions=revisions, seed=seed)
        for name, judge in (further_judges or {}).items():
            again = judge_again(runner_of(judge), whole, [one.rollout for one in best])
            rows += evaluation_rows(
                zip(whole, again, strict=True), revisions=revisions, judge=name, seed=seed
            )
    return rows


def judge_again(runner: JudgeRunner, tasks: Sequence[Task], rollouts: Sequence[Rollout]) -> list[Judged]:
    """Returns another judge's judgements of answers. Ranks share the work, and each gets all results."""

    def work() -> list[tuple[int, Judged]]:
        with runner:
            futures: list[tuple[int, Future[Judged]]] = []
            for places in _together(runner, rollouts)[rank() :: world_size()]:
                task, first = tasks[places[0]], rollouts[places[0]]
                if runner.judge.judges_groups:
                    futures += zip(
                        places, runner.submit_group(task, [rollouts[p] for p in places]), strict=True
                    )
                else:
                    futures.append((places[0], runner.submit(task, first)))
            return [(place, future.result()) for place, future in futures]

    judged_at = dict(chain.from_iterable(gather_results(work)))
    judged = [judged_at[place] for place in range(len(rollouts))]
    runner.watch(judged)
    runner.check_judged()
    return judged


def _together(runner: JudgeRunner, rollouts: Sequence[Rollout]) -> list[list[int]]:
    """The places of the answers that are judged together: each alone, or those of a group."""
    if not runner.judge.judges_groups:
        return [[place] for place in range(len(rollouts))]
    groups: dict[str, list[int]] = {}
    for place, rollout in enumerate(rollouts):
        groups.setdefault(rollout.group_id, []).append(place)
    return list(groups.values())


def trajectory_records(trajectories: Iterable[Trajectory]) -> Iterator[dict[str, Any]]:
    """Yields one record per answer, with its round, from 0, and whether it is the best of its trajectory."""
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


def rounds_table(trajectories: Sequence[Trajectory], rounds: int, rows: Sequence[Row]) -> Table:
    """Returns the results of each round of revision, as a table for the screen."""
    table = Table(
        "round", "reward (95 %)", "met", "perfect", "revised", "mended", "broken", "tokens",
        title=f"{len(trajectories)} answers, keeping the best so far of each",
    )  # fmt: skip
    for number in range(rounds + 1):
        row = find_row(rows, "reward", number)
        made = [one for one in trajectories if len(one.answers) > number]
        changes = [change for one in made if number for change in _changes(one, number)]
        table.add_row(
            str(number),
            Text(f"{row.mean:.3f} [{row.low:.2f}, {row.high:.2f}]" if row else ""),
            *(_mean(rows, name, number) for name in ("criteria_met", "perfect")),
            str(len(made)) if number else "",
            str(sum(after and not before for before, after in changes)) if number else "",
            str(sum(before and not after for before, after in changes)) if number else "",
            str(sum(len(one.answers[number].rollout.token_ids) for one in made)),
        )
    return table


def _changes(trajectory: Trajectory, number: int) -> list[tuple[bool, bool]]:
    """Returns (fulfilled by the draft, fulfilled by the revision) for each criterion."""
    before = fulfilled(trajectory.task, trajectory.best(number - 1))
    after = fulfilled(trajectory.task, trajectory.answers[number])
    return [(before[key], after[key]) for key in before if key in after]


def _mean(rows: Sequence[Row], name: str, revisions: int) -> str:
    row = find_row(rows, name, revisions)
    return f"{row.mean:.3f}" if row else ""


@literal_text()
def rounds_picture(rows: Sequence[Row], path: Path) -> None:
    """Plots reward and criteria met over rounds of revision, with their intervals."""
    figure = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, color in (("reward", "tab:blue"), ("criteria_met", "tab:orange")):
        line = sorted((r for r in rows if r.name == name and not r.judge), key=lambda row: row.revisions)
        x = [row.revisions for row in line]
        axes.plot(x, [row.mean for row in line], marker="o", color=color, label=name.replace("_", " "))
        axes.fill_between(x, [r.low for r in line], [r.high for r in line], color=color, alpha=0.15)
    axes.set_xticks(sorted({row.revisions for row in rows}))
    axes.set_xlabel("rounds of revision")
    axes.set_ylabel("mean, 95 % interval")
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(path))
