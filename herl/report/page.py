"""report.html: one run on one page, a single file without scripts or network.

Text of models, rows and judges reaches the page through a template that escapes all of it. Settings that may
be secrets are hidden (`secret.without_secret`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from herl.display.duration import duration
from herl.display.may_fail import may_fail
from herl.files import write_whole
from herl.report.chart import chart
from herl.report.commands import commands
from herl.report.drafts import criterion_texts, examples, revision_gains, visible
from herl.report.run_files import Result, RunFiles, read_run
from herl.report.story import count, interval, judge_cost, story

REPORT = "report.html"
MAX_BARS = 20
"""Maximum number of criteria on the page; all are in summary.json."""
OVERALL = {
    "reward": "Reward",
    "clipped_reward": "Reward, clipped to [0, 1]",
    "criteria_met": "Criteria met",
    "perfect": "Perfect answers",
    "abstained": "Verdicts not reached",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A result before and after, as bars."""

    name: str
    before: Result | None
    after: Result

    @property
    def change(self) -> float:
        """The mean after minus the mean before."""
        return self.after.mean - self.before.mean if self.before else 0.0


def write_report(folder: Path) -> list[str]:
    """Writes report.html into a run's folder, and returns the run in sentences.

    Raises:
        DataError: the folder is not a run's, or its records are damaged.
    """
    run = read_run(folder)
    said = [visible(sentence) for sentence in story(run, revision_gains(folder).tolist())]
    write_whole(folder / REPORT, _page(run, said))
    return said


def try_report(folder: Path) -> list[str]:
    """Writes the report of a run that has just ended. If that fails, the run does not; a warning appears."""
    said: list[str] = []
    with may_fail(str(folder / REPORT)):
        said = write_report(folder)
    return said


def _page(run: RunFiles, said: list[str]) -> str:
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    judge = visible(judge_cost(run))
    overall, criteria = bars(run, criterion_texts(run.folder))
    pages.filters |= {"interval": interval, "visible": visible}
    return pages.get_template("report.html.jinja").render(
        title=visible(run.folder.resolve().name),
        headline=said[0],
        story=[one for one in said[1:] if not one.startswith("Alarm") and one != judge],
        alarms=[one for one in said if one.startswith("Alarm")],
        facts=_facts(run),
        chart=chart(run.curve) if run.trained else None,
        trained=run.trained,
        labels=("before", "after") if run.trained else ("plain attempt", "best answer"),
        overall=overall,
        criteria=criteria[:MAX_BARS],
        all_criteria=len(criteria),
        examples=examples(run.folder),
        judge=judge,
        commands=[(one.purpose, one.line) for one in commands(run.folder, run.summary.optimizer_steps)],
        settings={visible(key): visible(value) for key, value in run.settings.items()},
    )


def bars(run: RunFiles, texts: Mapping[str, str]) -> tuple[list[Bar], list[Bar]]:
    """Returns the results over all criteria, and those by criterion: those that changed most come first.

    Args:
        run: What the run left. Results by category stand in for criteria without ids.
        texts: The text of criteria, by id.
    """
    if not run.validations:
        return [], []
    first, last = run.validations[0].rows, run.validations[-1].rows
    before = first if len(run.validations) > 1 else {}

    def made(prefix: str, names: Mapping[str, str]) -> list[Bar]:
        return [
            Bar(
                name=visible(names.get(name.removeprefix(prefix), name.removeprefix(prefix))),
                before=before.get(name),
                after=row,
            )
            for name, row in last.items()
            if name.startswith(prefix)
        ]

    overall = [
        Bar(name=words, before=before.get(name), after=last[name])
        for name, words in OVERALL.items()
        if name in last and not (name == "abstained" and last[name].mean == 0)
    ]
    kinds = made("criterion/", texts) or made("category/", {}) or made("source/", {})
    return overall, sorted(kinds, key=lambda bar: (-abs(bar.change), bar.after.mean))


def _facts(run: RunFiles) -> dict[str, str]:
    """Returns the facts under the headline."""
    summary = run.summary
    seconds = summary.seconds.get("total")
    named = {
        "Experiment": summary.experiment,
        "Algorithm": summary.algorithm if run.trained else None,
        "Model": run.setting("model.path") or run.choices.get("model"),
        "Data": run.choices.get("data"),
        "Judge": run.choices.get("judge"),
        "Seed": summary.seed,
        "Answers": count(summary.answers_sampled) if run.trained else None,
        "Optimizer steps": None if summary.optimizer_steps is None else count(summary.optimizer_steps),
        "Time": duration(seconds) if seconds is not None else None,
    }
    return {name: visible(str(value)) for name, value in named.items() if value not in (None, "", "none")}
