"""`herl compare RUN RUN ...`: runs side by side, and a picture of their held-out curves.

Sweeps end with the same table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from herl.display.duration import duration
from herl.display.picture import label, literal_text
from herl.display.screen import Screen
from herl.errors import ConfigError
from herl.prompt_text import visible
from herl.report.change import interval, paired
from herl.report.run_files import RunFiles, read_run
from herl.report.secret import plain_value
from herl.report.story import count
from herl.report.summary_file import Judge

_MAX_LABEL = 48
_MAX_CELL = 400
JUDGE_SETTINGS = ("judge.", "judge/", "judge@", "aggregation.", "module.judge_runner.strip_thinking")
"""Beginnings of the keys that say how answers are judged."""
HOW_ASKED = ("judge.limits", "judge.cache", "judge.chat.base_url", "judge.chat.api_key_env")
"""Beginnings of those among them that no verdict depends on."""
MARKERS = "osD^vPX*"
"""Curves differ in marker too, for readers who cannot tell the colors apart."""


def compare(config: DictConfig) -> None:
    """Prints the table of the given runs and writes their picture."""
    given = [config.runs] if isinstance(config.runs, str) else config.runs or []
    folders = [Path(str(one)) for one in given]
    runs = [read_run(path) for folder in folders for path in of_sweep(folder) or [folder]]
    if len(runs) < 2:
        raise ConfigError(
            f"runs: expected at least two runs, or a sweep of them, got {len(runs)}: herl compare RUN RUN ..."
        )
    show(runs, None if config.out is None else Path(str(config.out)))


def show(runs: Sequence[RunFiles], picture: Path | None, console: Screen | None = None) -> None:
    """Prints runs side by side, and writes the picture of those that have a held-out curve.

    Raises:
        ConfigError: the picture's file has no ending that names a format, or its folder does not exist.
    """
    console = console or Screen()
    console.print(_table(runs))
    for line in (*_measured_on(runs), *_judged_by(runs)):
        console.print(line)
    if differing := different_settings(runs):
        console.print(_settings_table(differing))
    elif len({run.folder.resolve() for run in runs}) > 1:
        console.print("The runs were given the same settings.")
    if picture is not None and any(len(run.curve) > 1 for run in runs):
        draw(runs, picture)
        console.print(f"Held-out curves: {picture}", soft_wrap=True)


def different_settings(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    """Returns the settings in which runs differ, among those given to any of them, and each run's value."""
    given = list(dict.fromkeys(key for run in runs for key in run.settings))
    values = {key: [run.setting(key) or "-" for run in runs] for key in given}
    return {key: listed for key, listed in values.items() if len(set(map(_meaning, listed))) > 1}


def _meaning(value: str) -> str:
    """A setting's value, such that 1e-6 and 0.000001 are the same."""
    known = None if value == "-" else plain_value(value)
    return repr(float(known) if isinstance(known, int) and not isinstance(known, bool) else known)


@literal_text()
def draw(runs: Sequence[RunFiles], path: Path) -> None:
    """Draws the held-out reward of runs over sampled answers, with 95 % intervals."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    colors = colormaps["tab10"]
    for number, (run, marker) in enumerate(zip(runs, cycle(MARKERS), strict=False), 1):
        color = colors((number - 1) % 10)
        if len(run.curve) < 2:
            continue
        answers = [place for place, _ in run.curve]
        rows = [row for _, row in run.curve]
        named = f"{number}: {_label(run, runs)}"
        axes.plot(answers, [row.mean for row in rows], color=color, marker=marker, markersize=4, label=named)
        ends = [row.low for row in rows], [row.high for row in rows]
        axes.fill_between(answers, *ends, color=color, alpha=0.12, linewidth=0)
    axes.set_xlabel("sampled answers")
    axes.set_ylabel("held-out reward, 95 % interval")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    FigureCanvasAgg(figure)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"out: expected a picture's file, as in compare.png, got {path}: {error}"
        ) from error


def of_sweep(folder: Path) -> list[Path]:
    """Returns the folders of a sweep's runs that have ended; of a single run, its own."""
    if (folder / "summary.json").is_file():
        return [folder]
    jobs = [path.parent for path in folder.glob("*/summary.json")]
    return sorted(jobs, key=lambda job: (len(job.name.partition("_")[0]), job.name))  # 2_... before 10_...


def _table(runs: Sequence[RunFiles]) -> Table:
    table = Table(title="held-out reward: mean and 95 % interval, by bootstrap over prompts")
    table.add_column("", justify="right")
    table.add_column("run", overflow="fold")
    for name in ("before", "after", "answers", "time", "judge"):
        table.add_column(name, justify="right", no_wrap=name != "after")
    for number, run in enumerate(runs, 1):
        curve, summary = run.curve, run.summary
        before = curve[0][1].mean if len(curve) > 1 else summary.heldout_reward_before
        after = curve[-1][1] if curve else None
        mean = summary.heldout_reward_after
        mean = summary.heldout_reward if mean is None else mean
        cells = [
            _number(before),
            f"{after.mean:.3f} [{after.low:.2f}, {after.high:.2f}]{_when(run)}" if after else _number(mean),
            count(summary.answers_sampled if run.trained else summary.heldout_answers),
            duration(summary.seconds.get("total", 0.0)),
            _judge(summary.judge),
        ]
        table.add_row(str(number), _text(_name(run, runs)), *cells)
    return table


def _measured_on(runs: Sequence[RunFiles]) -> Iterator[str]:
    """Says what each run's last reward is over the first run's, and where they cannot be compared."""
    last = {number: run.measured[-1] for number, run in enumerate(runs, 1) if run.measured}
    if len(last) < 2:
        return
    start, *others = last
    unlike = []
    for number in others:
        one, first = last[number], last[start]
        counts = (one.rows["reward"].count, first.rows["reward"].count)
        known = one.prompts and first.prompts
        if one.prompts != first.prompts if known else counts[0] != counts[1]:
            unlike.append(number)
        elif (differences := paired(first, one)) is not None:
            low, high = interval(differences)
            shown = f"{differences.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
            names = [f"{place}{_when(runs[place - 1])}" for place in (number, start)]
            yield f"The reward of {names[0]} minus that of {names[1]}, prompt by prompt: {shown}."
    if unlike:
        listed = ", ".join(map(str, unlike))
        yield (
            f"Held-out prompts or their rubrics differ: {listed} had others than {start}, so their rewards "
            "do not compare."
        )
    elif not all(one.prompts for one in last.values()):
        yield "Some of these runs do not say which prompts were held out; compare only runs on the same ones."


def _judged_by(runs: Sequence[RunFiles]) -> Iterator[str]:
    """Says whose rewards another judge, or the same one with other settings, gave."""
    keys = {
        "judge",
        "aggregation",
        *(
            key
            for run in runs
            for key in run.settings
            if key.startswith(JUDGE_SETTINGS) and not key.startswith(HOW_ASKED)
        ),
    }
    given = [{key: _meaning(run.setting(key) or "-") for key in keys} for run in runs]
    if unlike := [number for number, one in enumerate(given, 1) if one != given[0]]:
        listed = ", ".join(map(str, unlike))
        yield f"The judge or its settings differ: {listed} may have rewards on another scale than 1."


def _when(run: RunFiles) -> str:
    """Where a run was measured last, if it was stopped after that."""
    return f" (after {count(run.measured[-1].answers)} answers)" if run.ended_early else ""


def _settings_table(differing: Mapping[str, Sequence[str]]) -> Table:
    table = Table(title="settings that differ", title_style="italic", min_width=24)
    table.add_column("", overflow="fold")
    runs = len(next(iter(differing.values())))
    if runs <= 4:
        for number in range(1, runs + 1):
            table.add_column(str(number), overflow="fold")
        for key, values in differing.items():
            table.add_row(_text(key), *map(_text, values))
        return table
    for key in differing:
        table.add_column(_text(key), overflow="fold")
    for number, values in enumerate(zip(*differing.values(), strict=True), 1):
        table.add_row(str(number), *map(_text, values))
    return table


def _name(run: RunFiles, runs: Sequence[RunFiles]) -> str:
    """Returns a run's folder without the folders that all runs share."""
    places = [one.folder.resolve() for one in runs]
    shared = [set(names) for names in zip(*(place.parts for place in places), strict=False)]
    depth = next((number for number, names in enumerate(shared) if len(names) > 1), len(shared))
    return str(Path(*run.folder.resolve().parts[depth:])) if depth < len(shared) else run.folder.name


def _label(run: RunFiles, runs: Sequence[RunFiles]) -> str:
    differing = different_settings(runs)
    place = next(number for number, one in enumerate(runs) if one is run)
    said = " ".join(f"{key}={values[place]}" for key, values in differing.items())
    return label(said if 0 < len(said) <= _MAX_LABEL else _name(run, runs), _MAX_LABEL)


def _judge(judge: Judge) -> str:
    if judge.cost:
        return f"{judge.cost:.4g}"
    return f"{count(judge.calls)} calls" if judge.calls else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _text(said: str) -> Text:
    """Text of a run's folder, which may be anybody's: no escape sequence of it reaches the terminal."""
    return Text(visible(said, _MAX_CELL))
