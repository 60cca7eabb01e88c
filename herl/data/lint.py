"""Finds problems that make rubric data hard to learn from, before a run pays for them.

An error will spoil a run; a warning is worth a look. `findings` is a pure function of tasks and, if given,
of the answers that a run recorded.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np

from herl.checks.backtracking import nested_repeat, patterns_of
from herl.data.sources import shortened
from herl.errors import DataError
from herl.types import Criterion, Task

BAD_ROW = "bad row"
NEAR = 0.8
"""Smallest share of common word triples (Jaccard index) at which two prompts are near-duplicates."""
_NEGATED = re.compile(
    r"\b(does not|doesn't|do not|avoids?|refrains?|never|without|no longer|free of)\b", re.I
)
_BLAME = re.compile(r"^(fails? to|incorrectly|wrongly|omits?|neglects?|misses|forgets)\b", re.I)
_COMPOUND = re.compile(r"[^,;]\s+(and|as well as)\s+\w+(s|es)\b", re.I)
_HASHES, _BANDS = 64, 16
_BUCKET = 8
"""Most prompts with the same hashes that a further one is compared with: prompts that share a template, or
form a large cluster, would otherwise all be compared with each other."""
_PRIME = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One problem found."""

    level: Literal["error", "warning"]
    kind: str
    where: str
    """Split, task and criterion: "train:17:c2"."""
    detail: str


def findings(
    splits: Mapping[str, Sequence[Task]],
    *,
    prompt_tokens: Callable[[Task], int] | None = None,
    max_prompt_tokens: int | None = None,
    records: Iterable[Mapping[str, Any]] = (),
) -> list[Finding]:
    """Returns all findings, errors first.

    Args:
        splits: Tasks by split name. A prompt in two splits is an error.
        prompt_tokens: Returns the length of a rendered prompt, in tokens, or raises a `DataError` if it
            cannot be rendered; None skips that check.
        max_prompt_tokens: Longest prompt that the run allows, in tokens.
        records: Answers that a run recorded (`herl.callbacks.RecordAnswers`).
    """
    found: list[Finding] = []
    without_rubric: list[str] = []
    for split, tasks in splits.items():
        for task in tasks:
            where = f"{split}:{task.id}"
            for criterion in task.rubric.criteria:
                found += _criterion(f"{where}:{criterion.id}", criterion)
            found += _rubric(where, task)
            if not task.rubric.criteria:
                without_rubric.append(where)
            if not task.request.strip():
                detail = "its last message has no text"
                found.append(Finding(level="error", kind="empty prompt", where=where, detail=detail))
            if prompt_tokens is not None and max_prompt_tokens is not None:
                found += _prompt(where, task, prompt_tokens, max_prompt_tokens)
        if unused := getattr(tasks, "unused_columns", ()):
            detail = f"no field takes them: {', '.join(unused)}"
            found.append(Finding(level="warning", kind="unused columns", where=split, detail=detail))
    if without_rubric:
        detail = f"{len(without_rubric)} rows have none, so only a judge=function that returns a number fits"
        found.append(Finding(level="warning", kind="no rubric", where=without_rubric[0], detail=detail))
    found += _without_check(splits)
    found += _weights(splits)
    found += _duplicates(splits)
    found += _records(records)
    return sorted(found, key=lambda finding: finding.level)


def _prompt(
    where: str, task: Task, prompt_tokens: Callable[[Task], int], max_prompt_tokens: int
) -> Iterator[Finding]:
    try:
        length = prompt_tokens(task)
    except DataError as error:
        yield Finding(level="error", kind="unusable prompt", where=where, detail=str(error))
        return
    if length > max_prompt_tokens:
        detail = f"{length} tokens exceed the limit of {max_prompt_tokens}: it will be dropped"
        yield Finding(level="error", kind="long prompt", where=where, detail=detail)


def _criterion(where: str, criterion: Criterion) -> Iterator[Finding]:
    text = criterion.text.strip()
    bad = criterion.undesirable
    if not text:
        yield Finding(level="error", kind="empty criterion", where=where, detail="it has no text")
    if criterion.weight == 0:
        yield Finding(level="error", kind="zero weight", where=where, detail=f"it has no effect: {text}")
    if _COMPOUND.search(text):
        detail = f"one verdict covers two things: {text}"
        yield Finding(level="warning", kind="compound criterion", where=where, detail=detail)
    if bad and _NEGATED.search(text):
        detail = f"marked as undesirable, but its wording denies something bad: {text}"
        yield Finding(level="warning", kind="polarity", where=where, detail=detail)
    if not bad and _BLAME.search(text):
        detail = f"meeting it counts as good, but its wording describes a fault: {text}"
        yield Finding(level="warning", kind="polarity", where=where, detail=detail)

    for pattern in patterns_of(criterion.check):
        if (part := nested_repeat(pattern)) is not None:
            detail = f"{part} can match one text in many ways, so the pattern may take too long: {pattern}"
            yield Finding(level="warning", kind="nested quantifiers", where=where, detail=detail)


def _without_check(splits: Mapping[str, Sequence[Task]]) -> Iterator[Finding]:
    """Where some criteria have a check: those that judge=rule leaves out."""
    for split, tasks in splits.items():
        named = ((f"{split}:{task.id}:{c.id}", c) for task in tasks for c in task.rubric.criteria)
        wheres: dict[bool, list[str]] = {True: [], False: []}
        for where, criterion in named:
            wheres[bool(criterion.check)].append(where)
        if wheres[True] and (bare := wheres[False]):
            total = len(bare) + len(wheres[True])
            detail = (
                f"{len(bare)} of {total} criteria have none: judge=rule leaves them out of the reward, "
                "judge=mix can send them to a model"
            )
            yield Finding(level="warning", kind="no check", where=bare[0], detail=detail)


def _rubric(where: str, task: Task) -> Iterator[Finding]:
    texts = Counter(" ".join(c.text.lower().split()) for c in task.rubric.criteria)
    for text, times in texts.items():
        if times > 1:
            detail = f"{times} times: {text}"
            yield Finding(level="warning", kind="repeated criterion", where=where, detail=detail)


def _weights(splits: Mapping[str, Sequence[Task]]) -> Iterator[Finding]:
    """Warns if all criteria weigh the same, since the weights may have been lost on the way."""
    weights = [c.weight for tasks in splits.values() for task in tasks for c in task.rubric.criteria]
    if len(weights) > 1 and len(set(weights)) == 1:
        detail = f"all {len(weights)} criteria have the weight {weights[0]:g}"
        yield Finding(level="warning", kind="no weights", where=", ".join(splits), detail=detail)


def _duplicates(splits: Mapping[str, Sequence[Task]]) -> Iterator[Finding]:
    """Finds equal prompts by their words, and near-duplicates by MinHash over word triples. Instructions of
    the system, which many prompts share, do not make them near-duplicates."""
    places: list[tuple[str, frozenset[int]]] = []
    first: dict[str, str] = {}
    for split, tasks in splits.items():
        for task in tasks:
            where = f"{split}:{task.id}"
            text = " ".join(_words(task.messages))
            if text in first:
                yield _pair("duplicate prompt", where, first[text], "the same words as")
                continue
            first[text] = where
            words = _words([message for message in task.messages if message["role"] != "system"])
            triples = zip(words, words[1:], words[2:], strict=False)
            places.append((where, frozenset(crc32(" ".join(triple).encode()) for triple in triples)))
    for where, other, share in _near(places):
        yield _pair("near-duplicate prompt", where, other, f"{share:.0%} of word triples in common with")


def _words(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    return re.findall(r"\w+", " ".join(message["content"] for message in messages).lower())


def _pair(kind: str, where: str, other: str, detail: str) -> Finding:
    leak = where.split(":")[0] != other.split(":")[0]
    return Finding(
        level="error" if leak and kind == "duplicate prompt" else "warning",
        kind=f"{kind} in two splits" if leak else kind,
        where=where,
        detail=f"{detail} {other}",
    )


def _near(places: Sequence[tuple[str, frozenset[int]]]) -> Iterator[tuple[str, str, float]]:
    """Yields pairs that share at least NEAR of their triples, each prompt at most once as the first. Takes
    time in proportion to the number of prompts."""
    generator = np.random.default_rng(0)
    factors, shifts = generator.integers(1, 1 << 31, (2, _HASHES, 1), dtype=np.uint64)
    buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    for place, (where, triples) in enumerate(places):
        if not triples:
            continue
        values = np.fromiter((triple % _PRIME for triple in triples), dtype=np.uint64)
        signature = ((factors * values + shifts) % np.uint64(_PRIME)).min(axis=1)
        near: dict[int, float] = {}
        for band, rows in enumerate(np.split(signature, _BANDS)):
            bucket = buckets[band, rows.tobytes()]
            for other in bucket:
                if other not in near:
                    common = len(triples & places[other][1])
                    near[other] = common / (len(triples) + len(places[other][1]) - common)
            if len(bucket) < _BUCKET:
                bucket.append(place)
        best = max(near.items(), key=lambda pair: pair[1], default=None)
        if best is not None and best[1] >= NEAR:
            yield where, places[best[0]][0], best[1]


def _records(records: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """Finds criteria whose verdict never varies, and prompts whose attempts all earn the same reward."""
    met: defaultdict[str, Counter[bool]] = defaultdict(Counter)
    rewards: defaultdict[str, set[float]] = defaultdict(set)
    tries: Counter[str] = Counter()
    for record in records:
        if record["origin"] != "policy":
            continue
        for verdict in record["verdicts"]:
            if verdict.get("met") is not None:
                met[f"{record['task_id']}:{verdict['criterion_id']}"][verdict["met"]] += 1
        if record["reward"] is not None:
            rewards[record["task_id"]].add(round(record["reward"], 4))
            tries[record["task_id"]] += 1
    for where, counts in met.items():
        if len(counts) == 1 and counts.total() > 1:
            [value] = counts
            detail = f"in {counts.total()} attempts of the run"
            kind = "criterion always met" if value else "criterion never met"
            yield Finding(level="warning", kind=kind, where=f"records:{where}", detail=detail)
    for task_id, different in rewards.items():
        if len(different) == 1 and tries[task_id] > 1:
            detail = f"all {tries[task_id]} attempts of the run have the reward {different.pop():g}"
            yield Finding(
                level="warning", kind="prompt without signal", where=f"records:{task_id}", detail=detail
            )


def bad_rows(folder: Path) -> list[Finding]:
    """Returns a finding for each row that `read_tasks` quarantined in this folder."""
    return [
        Finding(
            level="error",
            kind=BAD_ROW,
            where=row["place"],
            detail=row["error"].removeprefix(f"{row['place']}: ")
            + ("" if row["row"] is None else f"\n  the row: {shortened(row['row'])}"),
        )
        for path in sorted(folder.glob("bad_rows_*.jsonl"))
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]
