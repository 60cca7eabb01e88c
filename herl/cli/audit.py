"""herl audit: recorded answers -> how far their judges can be trusted -> audit.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from herl.config.build import make, quiet
from herl.config.check import check
from herl.display.screen import Screen
from herl.environment import opened
from herl.errors import AuditLimit, BudgetSpent, ConfigError
from herl.evaluation.audit import HUMAN, JudgeAudit
from herl.evaluation.audit_report import Report, tables
from herl.files import write_whole
from herl.judge import Judge, JudgeRunner
from herl.judge.check_rows import check_rows
from herl.records.answers import RecordedAnswers, human_verdicts, recorded_answers, some_answers

MAIN = "judge"
"""The name of the configuration's own judge."""


def audit(config: DictConfig) -> Report:
    """Asks judges again about recorded answers, writes audit.json, prints its tables and returns it.

    Raises:
        AuditLimit: a judge is beyond one of the limits.
        BudgetSpent: the budget was used up before all was asked; the findings so far are written.
    """
    place = config.answers if config.answers is not None else config.run
    check(config)
    quiet()
    asked: JudgeAudit = make(config.audit)
    answers, human = _answers(config, asked, Path(str(place)))
    judges: dict[str, Judge] = {MAIN: make(config.judge)}
    judges |= {str(name): make(node) for name, node in config.further_judges.items()}
    if taken := {MAIN, HUMAN} & set(map(str, config.further_judges)):
        raise ConfigError(f"further_judges: expected another name than {', '.join(taken)}")
    for judge in judges.values():
        check_rows({"answers": answers.tasks}, judge)
    runner: JudgeRunner = make(config.module.judge_runner)(judges[MAIN])
    with ExitStack() as stack:
        for judge in judges.values():
            stack.enter_context(closing(judge))
        report = asked.run(answers, judges, runner.for_judge, human)
    path = Path(config.output_dir) / "audit.json"
    beyond = asked.beyond(report)
    write_whole(path, json.dumps(asdict(report) | {"beyond": beyond}, indent=2) + "\n")
    _show(report, path)
    if report.stopped:
        raise BudgetSpent(report.stopped)
    if beyond:
        raise AuditLimit("; ".join(beyond) + f": see {path}")
    return report


def _answers(
    config: DictConfig, asked: JudgeAudit, place: Path
) -> tuple[RecordedAnswers, Mapping[tuple[str, str], bool | None]]:
    """The answers that are audited, and people's verdicts on them."""
    data: Any = make(config.data)
    environment = make(config.environment)
    tasks = (opened(environment, task) for task in chain(data.train, data.heldout))
    answers = recorded_answers(place, tasks)
    human = {} if config.human is None else human_verdicts(Path(str(config.human)), answers)
    first = frozenset(id for id, _ in human)
    return some_answers(answers, asked.max_prompts, asked.answers_per_prompt, first), human


def _show(report: Report, path: Path) -> None:
    console = Screen()
    for table in tables(report):
        console.print(table)
    if report.usage:
        spent = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in report.usage.items())
        console.print(f"Spent: {spent}")
    console.print(f"All of it: {path}", soft_wrap=True)
