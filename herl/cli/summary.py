"""Output at the end of a run: summary.json, configuration, report, hyperparameters, tables on the screen."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers.oc import env as read_environment
from rich.table import Table
from rich.text import Text

from herl.callbacks.markup import plain
from herl.config.build import Run
from herl.display.may_fail import may_fail
from herl.display.screen import Screen
from herl.evaluation.intervals import OVERALL, Row, find_row
from herl.files import whole, write_whole
from herl.judge import JudgeRunner
from herl.loggers import tables
from herl.prompt_text import visible
from herl.report.commands import commands, from_here
from herl.report.page import REPORT, try_report
from herl.report.secret import HIDDEN as HIDDEN_VALUE
from herl.report.secret import without_secret

PACKAGES = ("herl", "torch", "lightning", "transformers", "hydra-core")
HIDDEN = ("experiment", "algorithm", "versions", "results", "validations", "heldout", "gold", "benchmark")
"""Parts of a summary that the screen does not show."""
SHOWN = ("Answers", "Curves", "Export")
"""Commands that the screen shows; report.html has more."""
STORY = "0_story/0_what_happened"
"""The loggers' tag for the run in words: no tag sorts before it."""
UNCHANGED = (
    "No optimizer step was taken, so the model is unchanged. Attempts at a prompt teach something "
    "only if they were judged and earn different rewards."
)
MAX_ROWS = 20
"""Maximum number of criteria on the screen; all are in summary.json."""


def finish(config: DictConfig, run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the configuration, summary and report of a run, prints the summary, and returns it."""
    summary = _summary(config, run, results)
    if not run.trainer.is_global_zero:
        return summary
    folder = Path(config.output_dir)
    with environment_unread(), whole(folder / "config.yaml") as part:
        OmegaConf.save(config, part, resolve=True)
    write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    said = try_report(folder)
    with may_fail("the report to the loggers"):
        _first_card(run, said)
    with may_fail("the summary to the screen", passes=(BrokenPipeError,)):
        _show(summary, folder)
    return summary


def _first_card(run: Run, said: Sequence[str]) -> None:
    """Shows the sentences of the report as the first text in TensorBoard, and as a table elsewhere."""
    place = run.module.counts[run.module.log_over]
    sentences = tables.Table(columns=("what_happened",), rows=tuple((visible(one),) for one in said))
    tables.write_table(run.trainer, STORY, sentences, place)
    for logger in run.trainer.loggers if said else ():
        if isinstance(logger, TensorBoardLogger):
            text = "\n\n".join([f"**{plain(said[0])}**", *map(plain, said[1:])])
            logger.experiment.add_text(STORY, text, place)
            logger.experiment.flush()


def _summary(config: DictConfig, run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    seconds = {name: round(value, 2) for name, value in run.module.clock.seconds.items()}
    seconds["total"] = round(run.module.clock.total(), 2)
    choices = HydraConfig.get().runtime.choices
    return {
        "experiment": choices.get("experiment"),
        "algorithm": choices.get("algorithm"),
        "seed": config.seed,
        **results,
        **({"alarms": alarms} if (alarms := _alarms(run.module.counts)) else {}),
        "judge": _judge_summary(run.module.stages.judge_runner),
        "processes": run.trainer.world_size,
        "seconds": seconds,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _alarms(counts: Mapping[str, int]) -> dict[str, int]:
    """How often each alarm went off."""
    prefix = "alarms_"
    return {name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix) and n}


@contextmanager
def environment_unread() -> Iterator[None]:
    """Keeps ${oc.env:NAME} unresolved, since its value may be a secret."""

    def as_written(name: str, *default: str) -> str:
        return "${oc.env:" + ",".join([name, *default]) + "}"

    OmegaConf.register_new_resolver("oc.env", as_written, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", read_environment, replace=True)


def _judge_summary(runner: JudgeRunner) -> dict[str, Any]:
    """The nonzero costs of judging, and the number of abstained verdicts by cause."""
    usage = runner.totals()
    counted = ("calls", "tokens", "cost", "cache_hits", "missing")
    cost = {name: round(usage[name], 6) for name in counted if usage.get(name)}
    faults = {name: int(n) for name, n in sorted(usage.items()) if name.startswith("fault_")}
    return cost | faults | ({"abstained": causes} if (causes := runner.causes()) else {})


def log_hyperparameters(config: DictConfig, run: Run, metrics: Mapping[str, Any]) -> None:
    """Logs the run's settings and final metrics, by which TensorBoard compares sweeps."""
    if not run.trainer.is_global_zero:
        return
    with environment_unread():
        plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    hydra = HydraConfig.get()
    given = {override.lstrip("+~").partition("=")[0] for override in hydra.overrides.task}
    named = {"seed", "optimizer.lr"} | given
    parameters = {key: harmless(key, value) for key, value in _leaves(plain) if key in named}
    choices = hydra.runtime.choices
    parameters |= {
        name: str(choices[name]) for name in ("algorithm", "experiment", *given) if name in choices
    }
    final = {f"final/{name}": value for name, value in metrics.items() if isinstance(value, float)}
    for logger in run.trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(parameters, final, step=run.module.counts[run.module.log_over])
            logger.experiment.flush()
        else:
            logger.log_hyperparams(parameters)
            logger.log_metrics(final, step=run.module.counts[run.module.log_over])
            logger.save()


def harmless(key: str, value: str | int | float | bool) -> str | int | float | bool:
    """Returns a setting as trackers may show it to others: itself, or "(hidden)"."""
    return value if (text := str(value)) == without_secret(key, text) else HIDDEN_VALUE


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float | bool) and not str(name).startswith("_"):
            yield f"{prefix}{name}", value


def _show(summary: Mapping[str, Any], folder: Path) -> None:
    """Prints the summary as a table."""
    table = Table("", "", show_header=False, title=f"herl: {summary['experiment']}, {summary['algorithm']}")
    for name, value in summary.items():
        if name in HIDDEN or value in (None, {}):
            continue
        if name in ("seconds", "judge", "alarms"):
            parts = {key: _listed(part) if isinstance(part, Mapping) else part for key, part in value.items()}
            value = _listed(parts)
        if name == "example":
            value = "\n".join(f"{when}: {text}" for when, text in value.items())
        if name == "best_checkpoint":
            value = from_here(Path(value))
        shown = f"{value:.3f}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), Text(visible(shown), overflow="fold"))
    table.add_row("folder", Text(from_here(folder), overflow="fold"))
    console = Screen()
    console.print(table)
    if (folder / REPORT).is_file():
        console.print(f"Report: {from_here(folder / REPORT)}", soft_wrap=True)
    for command in commands(folder, summary.get("optimizer_steps")):
        if command.name in SHOWN:
            console.print(f"{command.name}: {command.line}", soft_wrap=True)
    if summary.get("optimizer_steps") == 0:
        console.print(UNCHANGED, soft_wrap=True)


def _listed(values: Mapping[str, Any]) -> str:
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in values.items()}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


def show_rows(rows: Sequence[Row]) -> None:
    """Prints an evaluation, with one column for each judge and number of revisions."""
    if not rows:
        Screen().print("There are no held-out answers, so there is nothing to report.")
        return
    columns = sorted({(row.judge, row.revisions) for row in rows})
    heads = [_head(judge, revisions) for judge, revisions in columns]
    table = Table(title="held-out: mean and 95 % interval, by bootstrap over prompts")
    table.add_column("", overflow="fold")
    for head in (*heads, "n"):
        table.add_column(head, no_wrap=True)
    names = list(dict.fromkeys(row.name for row in rows))
    judge, revisions = columns[0]
    first = {name: find_row(rows, name, revisions, judge) for name in names}
    criteria = [name for name in names if name.startswith("criterion/")]
    criteria.sort(key=lambda name: row.mean if (row := first[name]) else 2.0)
    groups = [
        [name for name in OVERALL if name in names],
        [name for name in names if name not in OVERALL and name not in criteria],
        criteria[:MAX_ROWS],
    ]
    for group in filter(None, groups):
        for name in group:
            cells = [Text(_cell(find_row(rows, name, revisions, judge))) for judge, revisions in columns]
            table.add_row(Text(visible(name)), *cells, str(row.count) if (row := first[name]) else "")
        table.add_section()
    console = Screen()
    console.print(table)
    if len(criteria) > MAX_ROWS:
        console.print(f"The worst {MAX_ROWS} of {len(criteria)} criteria; all are in summary.json.")


def show_scores(scores: Mapping[str, Any]) -> None:
    """Prints a benchmark's own numbers with their bootstrap errors."""
    if not scores:
        return
    table = Table("", "score", "n", title="the benchmark's own numbers, with their standard errors")
    for name, value in scores.items():
        if not name.endswith((":n_samples", ":bootstrap_std")):
            error, count = scores.get(f"{name}:bootstrap_std"), scores.get(f"{name}:n_samples", "")
            shown = f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"
            table.add_row(Text(visible(name)), shown, str(count))
    Screen().print(table)


def _head(judge: str, revisions: int) -> str:
    made = {0: "plain attempt", 1: "1 revision"}.get(revisions, f"{revisions} revisions")
    return f"{judge}: {made}" if judge else made


def _cell(row: Row | None) -> str:
    return f"{row.mean:.3f} [{row.low:.2f}, {row.high:.2f}]" if row else ""
