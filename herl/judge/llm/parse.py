"""A judging model's reply -> verdicts. Tolerant of wrapping, strict about content.

The JSON may be surrounded by thinking, a code fence or other text. It must judge every criterion exactly
once, in the words of the scale. A reply with two different judgements is rejected.
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
class ParsedVerdict:
    """A reply's verdict on one criterion: a value in [0, 1] or None for "cannot tell", and the reason."""

    value: float | None
    reason: str = ""


def without_thinking(text: str) -> str:
    """Returns the text after </think>; an unterminated <think> block is stripped entirely."""
    return _THINKING.sub("", text).strip()


def read_verdicts(reply: str, count: int, scale: Scale) -> list[ParsedVerdict]:
    """Returns a reply's verdicts on criteria 1 to `count`, in order.

    Raises:
        JudgeError: the reply is malformed, or criteria are missing, duplicated or invented (wrong_count).
    """
    entries = _only_judgement([_entries(found["verdicts"]) for found in _objects(reply, "verdicts")], reply)
    if sorted(entries) != list(range(1, count + 1)):
        raise JudgeError(
            f"expected verdicts on criteria 1 to {count}, got {sorted(entries)[:20]}",
            "wrong_count",
            retry=True,
        )
    return [_parsed(entries[number], "verdict", scale) for number in range(1, count + 1)]


def read_score(reply: str, scale: Scale) -> ParsedVerdict:
    """Returns a reply's verdict on the answer as a whole.

    Raises:
        JudgeError: the reply is malformed.
    """
    return _parsed(_only_judgement(_objects(reply, "score"), reply), "score", scale)


def _only_judgement(found: list[Any], reply: str) -> Any:
    if not found:
        raise JudgeError(
            f"expected JSON with verdicts, got {without_thinking(reply)[:200]!r}", "malformed", retry=True
        )
    if any(other != found[0] for other in found[1:]):
        raise JudgeError("expected one judgement, got several that differ", "malformed", retry=True)
    return found[0]


def _objects(reply: str, key: str) -> list[dict[str, Any]]:
    """Returns the JSON objects in a text that have this key.

    Raises:
        JudgeError: the key also occurs outside them, because the reply quotes another or breaks off.
    """
    try:
        found = [_DECODER.decode(reply.strip())]
    except (json.JSONDecodeError, RecursionError):
        reply = without_thinking(reply)
        found = list(_scan(reply))
    named = [value for value in found if isinstance(value, dict) and key in value]
    if reply.count(f'"{key}"') != len(named):
        raise JudgeError(
            f"expected one complete JSON object with '{key}', got nested or partial ones: {reply[:200]!r}",
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
    """Yields the JSON objects in a text, tried at each opening brace outside the previous object."""
    place = text.find("{")
    while place >= 0:
        try:
            found, end = _DECODER.raw_decode(text, place)
            yield found
        except (json.JSONDecodeError, RecursionError):
            end = place + 1
        place = text.find("{", end)


def _entries(verdicts: Any) -> dict[int, Any]:
    """Verdicts by number, from {"1": ...} or from a list of entries that carry their number."""
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


def _parsed(entry: Any, key: str, scale: Scale) -> ParsedVerdict:
    if not isinstance(entry, dict):
        return ParsedVerdict(scale.value(entry))
    if key not in entry:
        raise JudgeError(f"expected the key '{key}', got {list(entry)[:5]}", "malformed", retry=True)
    return ParsedVerdict(scale.value(entry[key]), str(entry.get("reason") or ""))
