"""Finds recorded answers worth reading, in files of any size, and shows the changes that a revision made.

Works in two passes: the first streams over a few columns and keeps the positions of the best matches; the
second reads only those lines.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from omegaconf import DictConfig, ListConfig
from pyarrow import json as arrow_json
from rich.table import Table
from rich.text import Text

from herl.display.screen import Screen
from herl.display.terminal import say
from herl.errors import ConfigError, DataError
from herl.prompt_text import visible
from herl.records.lines import read_record, record_files, whole_bytes
from herl.records.turns import episode_facts, last_turn, recorded_turns, side_by_side, spoken

Order = Literal["worst", "best", "improved", "broken", "first", "last"]
_VERDICT = pa.struct([("criterion_id", pa.string()), ("fulfilled", pa.bool_())])
_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("task_id", pa.string()),
        ("parent_id", pa.string()),
        ("reward", pa.float64()),
        ("parent_reward", pa.float64()),
        ("policy_version", pa.int64()),
        ("verdicts", pa.list_(_VERDICT)),
    ]
)
_BYTES_AT_ONCE = 1 << 24
MARKS = {True: ("\N{CHECK MARK}", "green"), False: ("\N{MULTIPLICATION SIGN}", "red"), None: ("?", "yellow")}
"""Symbol and color of a criterion that is fulfilled, missed or not judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A recorded answer and, for a revision, its draft."""

    answer: dict[str, Any]
    draft: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which answers to find.

    Args:
        order: `worst` or `best` by reward; `improved` or `broken`, the revisions that gained or lost most
            over their draft; `first` or `last` by time of sampling.
        max_answers: Number of answers to find.
        task: Only answers to this task.
        criterion: Only answers that miss this criterion, or fulfill it if the order is `best` or `improved`.
        steps: Only answers sampled within this range of optimizer steps, both ends included.
    """

    order: Order = "improved"
    max_answers: int = 5
    task: str | None = None
    criterion: str | None = None
    steps: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ConfigError(f"order: expected one of {', '.join(get_args(Order))}, got '{self.order}'")
        if type(self.max_answers) is not int or self.max_answers < 1:
            raise ConfigError(f"max_answers: expected a whole number of at least 1, got {self.max_answers}")
        if self.steps is not None and not (
            isinstance(self.steps, tuple) and [type(step) for step in self.steps] == [int, int]
        ):
            raise ConfigError(
                f"steps: expected the first and the last step, as in steps=[0,50], got {self.steps}"
            )


def inspect(config: DictConfig) -> None:
    """Shows recorded answers, or prints them as lines of JSON."""
    if config.run is None:
        raise ConfigError("run: expected the folder of a run, as in: herl inspect runs/...")
    query = Query(
        order=config.order,
        max_answers=config.max_answers,
        task=None if config.task is None else str(config.task),
        criterion=None if config.criterion is None else str(config.criterion),
        steps=tuple(config.steps) if isinstance(config.steps, ListConfig) else config.steps,
    )
    found = find(Path(config.run), query)
    if not config.json:
        return show(found) if found else say(_nothing(query))
    for match in found:
        say(_json({"answer": match.answer, "draft": match.draft}))


def _json(value: Mapping[str, Any]) -> str:
    """A value as JSON in printable ASCII, so that the terminal changes nothing in it."""
    return json.dumps(value).replace("\x7f", r"\u007f")


def find(folder: Path, query: Query) -> list[Found]:
    """Returns the answers that match a query, in its order.

    Args:
        folder: A run's folder, or a folder that holds recorded answers.

    Raises:
        DataError: the folder has no recorded answers.
    """
    files = record_files(folder)
    best: list[tuple[float, int, int, int, str]] = []  # rank, a tie's decision, file, line, parent
    for number, path in enumerate(files):
        start = 0
        for batch in _batches(path):
            places, ranks = _ranked(batch, query)
            parents = batch.column("parent_id")
            for place, rank in zip(places.tolist(), ranks.tolist(), strict=True):
                line, parent = start + place, parents[place].as_py()
                age = (number << 40) + line
                tie = age if query.order == "last" else -age
                best.append((rank, tie, number, line, parent or ""))
            best = heapq.nlargest(query.max_answers, best)
            start += len(batch)
    lines = _read_lines(files, {(number, line) for _, _, number, line, _ in best})
    drafts = _read_drafts(files, {(number, parent) for _, _, number, _, parent in best if parent})
    return [
        Found(answer=lines[number, line], draft=drafts.get(parent)) for _, _, number, line, parent in best
    ]


def gains(folder: Path) -> np.ndarray:
    """Returns the reward of each recorded revision minus its draft's, [revisions], where both were judged.

    A revision without a draft is compared with the best attempt.

    Raises:
        DataError: the folder has no recorded answers.
    """
    found = [
        _array(pc.subtract(batch.column("reward"), batch.column("parent_reward")).drop_null(), float)
        for path in record_files(folder)
        for batch in _batches(path)
    ]
    return np.concatenate(found) if found else np.empty(0)


def _nothing(query: Query) -> str:
    """Returns a message that suggests a query with results."""
    hints = []
    if query.order in ("improved", "broken"):
        hints.append(
            f"order={query.order} shows only revisions; use order=worst or best for a run without hindsight"
        )
    if query.criterion is not None:
        hints.append("order=first shows the id of each criterion in brackets after its text")
    return "No recorded answer matches" + "".join(f"; {hint}" for hint in hints) + "."


def word_diff(before: str, after: str) -> list[tuple[Literal["same", "gone", "new"], str]]:
    """Returns runs of words that stayed the same, are gone, or are new."""
    a, b = before.split(), after.split()
    changes: list[tuple[Literal["same", "gone", "new"], str]] = []
    for kind, a0, a1, b0, b1 in SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes():
        if kind == "equal":
            changes.append(("same", " ".join(a[a0:a1])))
            continue
        if a1 > a0:
            changes.append(("gone", " ".join(a[a0:a1])))
        if b1 > b0:
            changes.append(("new", " ".join(b[b0:b1])))
    return changes


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    options = arrow_json.ParseOptions(explicit_schema=_COLUMNS, unexpected_field_behavior="ignore")
    reading = arrow_json.ReadOptions(block_size=_BYTES_AT_ONCE)
    whole = whole_bytes(path)  # a killed run may have left a partial line
    if not whole:
        return
    source = path if whole == path.stat().st_size else pa.BufferReader(path.read_bytes()[:whole])
    try:
        yield from arrow_json.open_json(source, read_options=reading, parse_options=options)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: expected one JSON object per line, as a run records them: {error}"
        ) from error


def _ranked(batch: pa.RecordBatch, query: Query) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of the best matches in the batch, and their ranks: higher is better."""
    reward = batch.column("reward")
    gain = pc.subtract(reward, batch.column("parent_reward"))
    sign = {"best": 1.0, "worst": -1.0, "improved": 1.0, "broken": -1.0}.get(query.order, 0.0)
    by = gain if query.order in ("improved", "broken") else reward
    keep = pc.is_valid(batch.column("id") if query.order in ("first", "last") else by)
    if query.task is not None:
        keep = pc.and_(keep, pc.equal(batch.column("task_id"), query.task))
    if query.steps is not None:
        steps = pc.fill_null(batch.column("policy_version"), -1)
        first, last = query.steps
        keep = pc.and_(keep, pc.and_(pc.greater_equal(steps, first), pc.less_equal(steps, last)))
    places = np.flatnonzero(_array(keep, bool))
    if query.criterion is not None:
        wanted = query.order in ("best", "improved")
        places = np.intersect1d(places, _with_verdict(batch.column("verdicts"), query.criterion, wanted))
    ranks = sign * np.nan_to_num(_array(by, float)[places])
    if query.order == "last":
        return places[-query.max_answers :], ranks[-query.max_answers :]
    order = np.argsort(-ranks, kind="stable")[: query.max_answers]
    return places[order], ranks[order]


def _with_verdict(verdicts: pa.ListArray, criterion: str, fulfilled: bool) -> np.ndarray:
    """Returns the positions of the answers with this verdict on a criterion."""
    flat = verdicts.flatten()
    same = pc.and_(
        pc.equal(flat.field("criterion_id"), criterion),
        pc.fill_null(pc.equal(flat.field("fulfilled"), fulfilled), False),
    )
    return _array(pc.list_parent_indices(verdicts).filter(same), int)


def _array(column: pa.Array, dtype: type) -> np.ndarray:
    """Returns a column; of floats, nulls are NaN. `to_numpy` would import pandas, which takes a while."""
    return np.array(column.to_pylist(), dtype=dtype)


def _read_lines(files: Sequence[Path], places: set[tuple[int, int]]) -> dict[tuple[int, int], dict[str, Any]]:
    found = {}
    for number in {number for number, _ in places}:
        wanted = {place for file, place in places if file == number}
        with files[number].open("rb") as lines:
            for place, line in enumerate(lines):
                if place in wanted:
                    found[number, place] = read_record(line, f"{files[number]}:{place + 1}")
    return found


def _read_drafts(files: Sequence[Path], wanted: set[tuple[int, str]]) -> dict[str, dict[str, Any]]:
    """Reads the drafts of revisions. A draft precedes its revision, in the same file or the one before."""
    found: dict[str, dict[str, Any]] = {}
    for number in sorted({place for file, _ in wanted for place in (file - 1, file) if place >= 0}):
        keys = {id: f'"id": {json.dumps(id)},'.encode() for file, id in wanted if number in (file - 1, file)}
        with files[number].open("rb") as lines:
            for place, line in enumerate(lines, 1):
                for id, key in keys.items():
                    if key in line[: len(key) + 2]:
                        found[id] = read_record(line, f"{files[number]}:{place}")
    return found


def show(found: Sequence[Found]) -> None:
    """Prints answers, and revisions next to their drafts with the changes marked."""
    console = Screen()
    for match in found:
        answer, draft = match.answer, match.draft
        earned = ", ".join(
            f"{name} {answer[name]:.3f}" for name in ("bonus", "advantage") if answer.get(name)
        )
        turns = recorded_turns(answer)
        facts = [answer["task_id"], f"after {answer['policy_version']} optimizer steps", earned]
        if draft is None and answer.get("parent_reward") is not None:
            facts.append(f"compared with {answer['parent_reward']:.3f}")
        console.rule(_text(", ".join(filter(None, facts))))
        if answer.get("fault"):
            console.print(_text(f"skipped in the update: {answer['fault']}", style="red"))
        console.print(_text(answer["request"], style="bold"))
        if episode := episode_facts(turns, str(answer.get("finish_reason"))):
            console.print(_text(episode, style="dim"))
        for name, one in (("draft", draft), (str(answer["origin"]), answer)):
            for words, thought in _thoughts(one) if one else ():
                console.print(_text(f"{name}, {words}: {thought}", style="dim"))
        table = Table(show_header=True, header_style="", expand=True)
        table.add_column("criterion", ratio=2)
        if draft is None:
            table.add_column(_text(f"{answer['origin']}: {reward_text(answer['reward'], 3)}"), ratio=4)
            for label, said in (*spoken(turns), (last_turn(turns), _answer(answer))):
                table.add_row(label, _text(said))
        else:
            table.add_column(f"draft: {reward_text(draft['reward'], 3)}", ratio=3)
            table.add_column(f"revision: {reward_text(answer['reward'], 3)}", ratio=3)
            for part in side_by_side((recorded_turns(draft), _answer(draft)), (turns, _answer(answer))):
                table.add_row(part.label, *_side_by_side(part.before, part.after))
        table.add_section()
        before = {v["criterion_id"]: v for v in (draft or {}).get("verdicts", ())}
        for verdict in answer["verdicts"]:
            cells = [_verdict(verdict)]
            if draft is not None:
                cells.insert(0, _verdict(before.get(verdict["criterion_id"], {})))
            name = f"{verdict['criterion']} ({abs(verdict['weight']):g}) [{verdict['criterion_id']}]"
            table.add_row(_text(name), *cells)
        console.print(table)


def _thoughts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was thought before each turn."""
    for number, turn in enumerate(recorded_turns(record), 1):
        if turn.thinking:
            yield f"thinking in turn {number}", turn.thinking
    if record.get("thinking"):
        yield "thinking", str(record["thinking"])


def _answer(record: Mapping[str, Any]) -> str:
    return str(record["text"]) if record.get("has_answer", True) else "(no answer: the thinking never ended)"


def _side_by_side(before: str, after: str) -> tuple[Text, Text]:
    draft, revision = Text(), Text()
    for kind, words in word_diff(before, after):
        if kind != "new":
            draft.append(visible(words) + " ", style="red strike" if kind == "gone" else "")
        if kind != "gone":
            revision.append(visible(words) + " ", style="bold green" if kind == "new" else "")
    return draft, revision


def _verdict(verdict: Mapping[str, Any]) -> Text:
    mark, style = MARKS[verdict.get("fulfilled")]
    return _text(f"{mark} {verdict.get('reason') or ''}".strip(), style=style)


def _text(said: str, style: str = "") -> Text:
    """Text of a model or a row, of which no escape sequence reaches the terminal."""
    return Text(visible(said), style=style)


def reward_text(reward: float | None, digits: int = 2) -> str:
    """Returns a reward in words, with this many digits after the point."""
    return "not judged" if reward is None else f"{reward:.{digits}f}"
