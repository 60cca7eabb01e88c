"""Recorded answers with the tasks that they answer, to be judged again; and verdicts of people on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from herl.errors import DataError
from herl.prompt_text import valid
from herl.records.lines import numbered_lines, record_files
from herl.records.turns import recorded_last_calls, recorded_turns
from herl.types import FinishReason, Rollout, Task, Turn

REQUEST = ("request", "prompt")
TEXT = ("text", "response", "answer", "completion")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAnswers:
    """Recorded answers, each with its task, and how many others were left out."""

    tasks: tuple[Task, ...]
    rollouts: tuple[Rollout, ...]
    """RecordedAnswers to one task form a group."""
    left_out: Mapping[str, int]
    """Number of other answers, by reason: `no_task` in the data, `no_answer` after the thinking, or `failed`,
    of an environment."""


def recorded_answers(place: Path, tasks: Iterable[Task]) -> RecordedAnswers:
    """Returns the answers of a run's folder or of a JSONL file.

    An answer in a file is an object with its text (`text`, `response`, `answer` or `completion`), and its
    task's id (`task_id`) or request (`request` or `prompt`), or both. Its `id` is the line's number if it has
    none. The turns of an episode before its last are in `turns` (`herl.records.turns`). Rubrics come from the
    tasks, since a record does not hold their checks.

    Args:
        place: The folder or the file.
        tasks: The data that the answers were given to.

    Raises:
        DataError: a line is no answer, two have the same id, or no answer has a task.
    """
    by_id, by_request = _known(tasks)
    left_out: Counter[str] = Counter()
    found: dict[str, tuple[Task, Rollout]] = {}
    for number, (where, record) in enumerate(_lines(place), 1):
        if record.get("origin") == "replay":  # recorded when it was sampled, too
            continue
        text, request = _text(record, TEXT, where), _text(record, REQUEST, where, needed=False)
        task_id = record.get("task_id")
        if request is None and task_id is None:
            raise DataError(f"{where}: expected task_id, request or prompt, got {', '.join(record)[:200]}")
        candidates = by_id.get(str(task_id), []) if task_id is not None else by_request.get(request or "", [])
        if request is not None:
            candidates = [task for task in candidates if valid(task.request) == request]
        if not record.get("has_answer", True):
            left_out["no_answer"] += 1
        elif record.get("finish_reason") == "failed":
            left_out["failed"] += 1
        elif len(candidates) != 1:
            left_out["no_task"] += 1
        else:
            id = str(record.get("id", number))
            if id in found:
                raise DataError(f"{where}: expected a new id, got {id!r} again")
            turns, calls = recorded_turns(record, where), recorded_last_calls(record, where)
            rollout = _rollout(id, candidates[0], text, record, turns)
            found[id] = candidates[0], replace(rollout, last_calls=calls)
    if not found:
        failed = f", of {left_out['failed']} the environment failed" if left_out["failed"] else ""
        raise DataError(
            f"answers: expected answers to the prompts of data=, but none of {place} is one "
            f"({left_out['no_task']} have another prompt, {left_out['no_answer']} have no answer{failed})"
        )
    return RecordedAnswers(
        tasks=tuple(task for task, _ in found.values()),
        rollouts=tuple(rollout for _, rollout in found.values()),
        left_out=dict(left_out),
    )


def some_answers(
    answers: RecordedAnswers, max_prompts: int, answers_per_prompt: int, first: frozenset[str] = frozenset()
) -> RecordedAnswers:
    """Returns answers to so many prompts, evenly spaced over all of them.

    Args:
        answers: All answers.
        max_prompts: Most prompts.
        answers_per_prompt: Most answers to each, evenly spaced too.
        first: Ids of answers that come before others, with their prompts.
    """
    pairs: dict[str, list[tuple[Task, Rollout]]] = {}
    for task, rollout in zip(answers.tasks, answers.rollouts, strict=True):
        pairs.setdefault(task.id, []).append((task, rollout))
    preferred = [one for one in pairs.values() if any(rollout.id in first for _, rollout in one)]
    others = [one for one in pairs.values() if one not in preferred] if preferred else list(pairs.values())
    chosen = _spread(preferred, max_prompts)
    chosen += _spread(others, max_prompts - len(chosen))
    kept: list[tuple[Task, Rollout]] = []
    for one in chosen:
        of_first = [pair for pair in one if pair[1].id in first]
        rest = [pair for pair in one if pair[1].id not in first]
        some = _spread(of_first, answers_per_prompt)
        kept += some + _spread(rest, answers_per_prompt - len(some))
    return RecordedAnswers(
        tasks=tuple(task for task, _ in kept),
        rollouts=tuple(rollout for _, rollout in kept),
        left_out=answers.left_out,
    )


def human_verdicts(path: Path, answers: RecordedAnswers) -> dict[tuple[str, str], bool | None]:
    """Returns people's verdicts, by ids of answer and criterion; None where somebody could not tell.

    A line has the `id` of an answer and its `verdicts`: {"criterion id": true, false or null}, or a list of
    {"criterion_id", "met"}, as in the records of a run.

    Raises:
        DataError: a line has another form, or names a criterion that its answer's task lacks.
    """
    rubrics = {
        rollout.id: {criterion.id for criterion in task.rubric.criteria}
        for task, rollout in zip(answers.tasks, answers.rollouts, strict=True)
    }
    found: dict[tuple[str, str], bool | None] = {}
    for where, record in _lines(path):
        verdicts = record.get("verdicts")
        if isinstance(verdicts, list) and all(isinstance(one, dict) for one in verdicts):
            verdicts = {str(one.get("criterion_id")): one.get("met") for one in verdicts}
        if "id" not in record or not isinstance(verdicts, dict):
            raise DataError(f'{where}: expected {{"id": ..., "verdicts": {{"criterion id": true}}}}')
        id = str(record["id"])
        for name, met in verdicts.items():
            if met is not None and not isinstance(met, bool):
                raise DataError(f"{where}: {name}: expected true, false or null, got {met!r}")
            if id in rubrics and name not in rubrics[id]:
                listed = ", ".join(sorted(rubrics[id]))
                raise DataError(f"{where}: expected criteria of its answer ({listed}), got '{name}'")
            if id in rubrics:
                found[id, name] = met
    if not found:
        raise DataError(f"human: expected verdicts on the answers by their ids, but {path} has none of them")
    return found


def _known(tasks: Iterable[Task]) -> tuple[dict[str, list[Task]], dict[str, list[Task]]]:
    """The different tasks by their ids and by their requests."""
    by_id: dict[str, list[Task]] = {}
    by_request: dict[str, list[Task]] = {}
    for task in tasks:
        same = by_id.setdefault(task.id, [])
        if task not in same:
            same.append(task)
            by_request.setdefault(valid(task.request), []).append(task)
    return by_id, by_request


def _lines(place: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not place.exists():
        raise DataError(f"answers: expected a run's folder or a JSONL file, but there is no '{place}'")
    for path in record_files(place) if place.is_dir() else [place]:
        for where, record in numbered_lines(path, partial=place.is_dir()):
            if not isinstance(record, dict):
                raise DataError(f"{where}: expected a JSON object, got {type(record).__name__}")
            yield where, record


def _text(record: Mapping[str, Any], names: Sequence[str], where: str, needed: bool = True) -> str | None:
    given = [name for name in names if isinstance(record.get(name), str)]
    if len(given) > 1 or (needed and not given):
        raise DataError(f"{where}: expected one of {', '.join(names)} as a text, got {given or 'none'}")
    return valid(record[given[0]]) if given else None


def _rollout(
    id: str, task: Task, text: str | None, record: Mapping[str, Any], turns: tuple[Turn, ...]
) -> Rollout:
    assert text is not None
    ended: Any = record.get("finish_reason")
    return Rollout(
        id=id,
        task_id=task.id,
        group_id=task.id,
        prompt_ids=(),
        token_ids=(),
        logprobs=(),
        text=text,
        finish_reason=ended if turns and ended in get_args(FinishReason) else "stop",
        policy_version=0,
        index=0,
        thinking=str(record.get("thinking") or ""),
        turns=turns,
    )


def _spread(items: Sequence[T], most: int) -> list[T]:
    """So many of the items, evenly spaced."""
    count = max(0, min(most, len(items)))
    return [items[place * len(items) // count] for place in range(count)]
