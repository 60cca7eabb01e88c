"""The reply of a judging model -> verdicts. Tolerant of wrapping, strict about content.

Around the JSON anything may stand: thinking, a code fence, a sentence. In it every criterion must be judged
exactly once, in the words of the scale. Two different judgements in one reply are none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from herl.errors import JudgeError
from herl.judge.llm.scale import Scale

_THINKING = re.compile(r"^.*</think>|<think>.*$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Said:
    """What a reply says of one criterion: a value in [0, 1], None for "cannot tell", and why."""

    value: float | None
    reason: str = ""


def without_thinking(text: str) -> str:
    """Returns the text without what stands before </think>; nothing is left of thinking that never ends."""
    return _THINKING.sub("", text).strip()


def read_verdicts(reply: str, count: int, scale: Scale) -> list[Said]:
    """Returns what a reply says of criteria 1 to `count`, in order.

    Raises:
        JudgeError: malformed, or wrong_count where criteria are missing, doubled or invented.
    """
    said = _the_one([_entries(found["verdicts"]) for found in _objects(reply, "verdicts")], reply)
    if sorted(said) != list(range(1, count + 1)):
        raise JudgeError(
            f"expected verdicts on criteria 1 to {count}, got {sorted(said)[:20]}", "wrong_count", retry=True
        )
    return [_said(said[number], "verdict", scale) for number in range(1, count + 1)]


def read_score(reply: str, scale: Scale) -> Said:
    """Returns what a reply says of the answer as a whole.

    Raises:
        JudgeError: malformed.
    """
    return _said(_the_one(_objects(reply, "score"), reply), "score", scale)


def _the_one(found: list[Any], reply: str) -> Any:
    if not found:
        raise JudgeError(
            f"expected JSON with verdicts, got {without_thinking(reply)[:200]!r}", "malformed", retry=True
        )
    if any(other != found[0] for other in found[1:]):
        raise JudgeError("expected one judgement, got several that differ", "malformed", retry=True)
    return found[0]


def _objects(reply: str, key: str) -> list[dict[str, Any]]:
    """Returns the JSON objects with this key that stand in a text.

    Raises:
        JudgeError: the key also stands outside of them: one reply quotes another, or breaks off.
    """
    try:
        found = [_DECODER.decode(reply.strip())]
    except (json.JSONDecodeError, RecursionError):
        reply = without_thinking(reply)
        found = list(_scan(reply))
    named = [one for one in found if isinstance(one, dict) and key in one]
    if reply.count(f'"{key}"') != len(named):
        raise JudgeError(
            f"expected one JSON object with '{key}', got others around it or pieces of them: {reply[:200]!r}",
            "malformed",
            retry=True,
        )
    return named


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise JudgeError(f"expected each criterion once, got {names[:20]}", "wrong_count", retry=True)
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _scan(text: str) -> Iterator[Any]:
    """Yields what can be read as JSON from each opening brace that is not inside of it."""
    place = text.find("{")
    while place >= 0:
        try:
            found, end = _DECODER.raw_decode(text, place)
            yield found
        except (json.JSONDecodeError, RecursionError):
            end = place + 1
        place = text.find("{", end)


def _entries(verdicts: Any) -> dict[int, Any]:
    """Verdicts by number: from {"1": ...}, or from a list of entries that carry their number."""
    if isinstance(verdicts, dict):
        pairs = list(verdicts.items())
    elif isinstance(verdicts, list) and all(isinstance(entry, dict) for entry in verdicts):
        pairs = [(entry.get("criterion", entry.get("index")), entry) for entry in verdicts]
    else:
        raise JudgeError(f"expected verdicts by number, got {str(verdicts)[:100]!r}", "malformed", retry=True)
    numbers = [_number(name) for name, _ in pairs]
    if len(set(numbers)) < len(numbers):
        raise JudgeError(f"expected each criterion once, got {numbers[:20]}", "wrong_count", retry=True)
    return dict(zip(numbers, (entry for _, entry in pairs), strict=True))


def _number(name: object) -> int:
    try:
        if isinstance(name, bool) or not isinstance(name, int | str):
            raise ValueError
        return int(name)
    except ValueError:
        raise JudgeError(
            f"expected the number of a criterion, got {str(name)[:40]!r}", "malformed", retry=True
        ) from None


def _said(entry: Any, key: str, scale: Scale) -> Said:
    if not isinstance(entry, dict):
        return Said(scale.value(entry))
    if key not in entry:
        raise JudgeError(f"expected the key '{key}', got {list(entry)[:5]}", "malformed", retry=True)
    return Said(scale.value(entry[key]), str(entry.get("reason") or ""))
