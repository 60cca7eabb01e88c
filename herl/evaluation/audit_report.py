"""What an audit of judges found (`herl.evaluation.audit`), and its tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from rich.table import Table
from rich.text import Text

from herl.evaluation.agreement import Estimate
from herl.prompt_text import visible

Check = Literal["retest", "position", "padding"]
MAX_EXAMPLES = 200
"""Most verdicts on which judges disagree that a report lists."""
SHOWN_CRITERIA = 10
LONGEST_NAME = 34


@dataclass(frozen=True, slots=True, kw_only=True)
class Rater:
    """One judge, or the people who gave verdicts."""

    name: str
    verdicts: int
    abstained: int
    causes: Mapping[str, int]
    """Abstained verdicts by cause."""
    reward: Estimate
    """Mean reward; undefined for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """A judge that was asked again."""

    judge: str
    check: Check
    flips: Estimate
    """Share of the verdicts, given both times, that differ."""
    gained: int
    """Criteria that were not fulfilled at first and are fulfilled now."""
    lost: int
    abstained: int
    """Pairs of verdicts that are not compared, since one of the two abstained."""
    reward_change: Estimate
    """Mean absolute difference of the rewards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two judges of the same answers."""

    first: str
    second: str
    disagreement: Estimate
    """Share of the verdicts, given by both, that differ."""
    kappa: Estimate
    """Cohen's kappa."""
    abstained: int
    """Pairs of verdicts that are not compared, since one of the two abstained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contested:
    """A criterion, and how often judges disagree on it."""

    criterion: str
    """Its id, or its text if the id is only a place in a rubric."""
    disagreement: Estimate
    """Share of its verdicts by two judges or more that are not all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an audit found."""

    prompts: int
    answers: int
    left_out: Mapping[str, int]
    """Recorded answers that could not be judged again, by reason."""
    raters: list[Rater]
    flips: list[Flips]
    agreements: list[Agreement]
    alpha: Estimate | None
    """Krippendorff's alpha of all judges and people; None for one alone."""
    criteria: list[Contested]
    """The most contested first."""
    examples: list[dict[str, object]] = field(default_factory=list)
    """Verdicts on which judges disagree, at most `MAX_EXAMPLES`."""
    usage: Mapping[str, float] = field(default_factory=dict)
    """What was spent: calls, tokens, cost, cache_hits."""
    stopped: str = ""
    """Why it ended before all was asked; empty if it did not."""


def tables(report: Report) -> Iterator[Table | Text]:
    """Yields the tables that the screen shows, and why verdicts abstained."""
    table = _table("", "verdicts", "abstained", "reward (95 %)", title=_title(report))
    for rater in report.raters:
        table.add_row(_short(rater.name), str(rater.verdicts), str(rater.abstained), _cell(rater.reward))
    yield table
    if why := [f"{one.name}: {_listed(one.causes)}" for one in report.raters if one.causes]:
        yield Text(visible(f"abstained: {'; '.join(why)}"))
    if report.flips:
        table = _table(
            "judge", "asked again", "flips (95 %)", "gained", "lost", "n", "abst.",
            title="the same judge, asked again",
        )  # fmt: skip
        for one in report.flips:
            counts = (one.gained, one.lost, one.flips.count, one.abstained)
            change = one.reward_change.value
            shown = _cell(one.flips)
            if not one.flips.count and change is not None:  # one score for the whole answer
                shown = f"reward by {change:.3f}"
            table.add_row(_short(one.judge), one.check, shown, *map(str, counts))
        yield table
    if report.agreements:
        alpha = _cell(report.alpha) if report.alpha else ""
        table = _table(
            "judges", "differ (95 %)", "kappa (95 %)", "n", "abst.",
            title=f"judges compared; Krippendorff's alpha of all: {alpha}",
        )  # fmt: skip
        for pair in report.agreements:
            names = _short(f"{pair.first}, {pair.second}")
            count, abstained = str(pair.disagreement.count), str(pair.abstained)
            table.add_row(names, _cell(pair.disagreement), _cell(pair.kappa), count, abstained)
        yield table
        contested = [one for one in report.criteria if one.disagreement.value][:SHOWN_CRITERIA]
        table = _table("criterion", "differ (95 %)", "n", title="criteria on which judges differ most")
        for row in contested:
            count = str(row.disagreement.count)
            table.add_row(_short(row.criterion, LONGEST_NAME), _cell(row.disagreement), count)
        if contested:
            yield table


def _table(name: str, *numbers: str, title: str) -> Table:
    """A table in which only names may take several lines."""
    table = Table(title=title)
    table.add_column(name, overflow="fold")
    for head in numbers:
        table.add_column(head, no_wrap=True)
    return table


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())


def _title(report: Report) -> str:
    skipped = f" (left out: {_listed(report.left_out)})" if report.left_out else ""
    return f"herl audit: {report.answers} answers to {report.prompts} prompts{skipped}"


def _short(name: str, longest: int = 24) -> Text:
    name = visible(" ".join(name.split()))
    return Text(name if len(name) <= longest else f"{name[: longest - 3]}...")


def _cell(found: Estimate) -> str:
    if found.value is None:
        return "-"
    return f"{found.value:.3f} [{found.low:.2f}, {found.high:.2f}]"
