"""A judging model's reply -> verdicts. Tolerant of wrapping, strict about content.

The judgement is one JSON object. Either it is the whole reply, apart from a code fence, or it is the end of
the reply and repeats the code of the material's fences. An answer does not know the code, so an
object that the reply only quotes from the answer is never taken for the judgement. It must judge every
criterion exactly once, in the words of the scale. A reply with two different judgements is rejected.

JSON is first read unchanged, with raw control characters allowed in strings. If that fails, three repairs are
made, none of which can change a verdict: a backslash that begins no escape (LaTeX) stands for itself, a comma
before a closing bracket is dropped, and Python's True, False and None count as JSON's. Anything looser, such
as single quotes, unescaped quotes or missing brackets, is malformed, because a guess about where it ends
could change the verdict. That is also why this does not use a general repair library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from herl.errors import JudgeError
from herl.judge.llm.scale import Scale
from herl.prompt_text import valid

MAX_CHARACTERS = 500_000
"""Longest reply that is read, about 100 000 tokens. Even a hostile one then takes less than a second."""
MAX_STARTS = 1000
"""Places in a reply at which an object is looked for."""
_THINKING_TAGS = ("think", "thinking", "reasoning")
_FENCED = re.compile(r"```[\w-]*\s(.*)```", re.DOTALL)
_START = re.compile(r'\{(?=\s*["}])')  # unlike the braces of LaTeX
_STRING = r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)'  # one that never ends is read to the end once, not from each quote
_ESCAPE = re.compile(r'\\(?:u[0-9a-fA-F]{4}|["\\/bfnrt])|\\')
_COMMA = re.compile(rf"({_STRING})|,(?=\s*[}}\]])", re.DOTALL)
_LITERAL = re.compile(rf"({_STRING})|\b(True|False|None)\b", re.DOTALL)
_LITERALS = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True, slots=True)
class ParsedVerdict:
    """A reply's verdict on one criterion: a value in [0, 1] or None for "cannot tell", and the reason."""

    value: float | None
    reason: str = ""


class PartialReply(JudgeError):
    """A reply about several answers that leaves some of them out, or has no usable verdicts on them.

    Args:
        found: Name of an answer -> its verdicts, in order, or what is wrong with them.
    """

    def __init__(self, found: Mapping[str, list[ParsedVerdict] | JudgeError]) -> None:
        faults = [fault for fault in found.values() if isinstance(fault, JudgeError)]
        super().__init__(f"{len(faults)} of {len(found)} answers: {faults[0]}", faults[0].cause, retry=True)
        self.found = found
        self.answers = len(found) - len(faults)
        """How many of them have verdicts."""


def without_thinking(text: str) -> str:
    """Returns the text after the first </think>, or nothing if it begins with a <think> that never ends.

    Later tags are text, or an answer could hide what stands before them.
    """
    text = text.strip()
    before, closed, rest = text.partition("</think>")
    if text.startswith("<think>") or (closed and "<think>" not in before):
        return rest.strip()
    return text


def read_verdicts(reply: str, count: int, scale: Scale, code: str = "") -> list[ParsedVerdict]:
    """Returns a reply's verdicts on criteria 1 to `count`, in order.

    Args:
        reply: The text of a complete reply.
        count: Number of criteria.
        scale: The allowed verdicts.
        code: The code of the material's fences; without it, the judgement must be the whole reply.

    Raises:
        JudgeError: the reply is malformed, or criteria are missing, duplicated or invented (wrong_count).
    """
    return _verdicts(_judgement(reply, "verdicts", code)["verdicts"], count, scale)


def read_group(
    reply: str, names: Sequence[str], count: int, scale: Scale, code: str
) -> dict[str, list[ParsedVerdict]]:
    """Returns a reply's verdicts on criteria 1 to `count` of each answer, by the answer's name.

    Args:
        reply: The text of a complete reply.
        names: The names of the answers.
        count: Number of criteria.
        scale: The allowed verdicts.
        code: The code of the material's fences.

    Raises:
        PartialReply: the verdicts on some answers are missing or malformed; it has the others.
        JudgeError: the reply is malformed, or has an answer twice or one that does not exist.
    """
    answers = _judgement(reply, "answers", code)["answers"]
    if not isinstance(answers, dict):
        raise JudgeError(f"expected answers by name, got {str(answers)[:100]!r}", "malformed", retry=True)
    if unknown := [name for name in answers if name not in names]:
        raise JudgeError(
            f"expected the answers {', '.join(names)}, got {unknown[:20]}", "wrong_count", retry=True
        )
    found: dict[str, list[ParsedVerdict] | JudgeError] = {}
    for name in names:
        try:
            if name not in answers:
                raise JudgeError(f"the reply leaves out the answer {name}", "wrong_count", retry=True)
            found[name] = _verdicts(answers[name], count, scale)
        except JudgeError as error:
            found[name] = error
    whole = {name: one for name, one in found.items() if not isinstance(one, JudgeError)}
    if len(whole) < len(found):
        raise PartialReply(found)
    return whole


def _verdicts(given: Any, count: int, scale: Scale) -> list[ParsedVerdict]:
    entries = _entries(given)
    if sorted(entries) != list(range(1, count + 1)):
        raise JudgeError(
            f"expected verdicts on criteria 1 to {count}, got {sorted(entries)[:20]}",
            "wrong_count",
            retry=True,
        )
    return [_parsed(entries[number], "verdict", scale) for number in range(1, count + 1)]


def read_score(reply: str, scale: Scale, code: str = "") -> ParsedVerdict:
    """Returns a reply's verdict on the answer as a whole; `code` is as for `read_verdicts`.

    Raises:
        JudgeError: the reply is malformed.
    """
    return _parsed(_judgement(reply, "score", code), "score", scale)


def read_met(reply: str) -> ParsedVerdict:
    """Returns the verdict of a reply {"criteria_met": true, "explanation": "..."}, as HealthBench's grader
    gives it: 1 or 0, with the explanation as its reason.

    Raises:
        JudgeError: the reply, apart from thinking and a code fence, is something else.
    """
    found = _judgement(without_thinking(reply), "criteria_met", "")
    met = found["criteria_met"]
    if not isinstance(met, bool):
        raise _malformed("expected true or false as 'criteria_met'", reply)
    return ParsedVerdict(float(met), valid(str(found.get("explanation") or "")))


def first_object(text: str) -> str | None:
    """Returns a text up to the end of the JSON object that it begins with, or None without a whole one."""
    for read in (text, _repaired(text)):
        with suppress(json.JSONDecodeError, RecursionError, JudgeError):
            return read[: _DECODER.raw_decode(read)[1]]
    return None


def _judgement(reply: str, key: str, code: str) -> dict[str, Any]:
    """Returns the JSON object that is the whole reply, or the one at its end that has the code."""
    if len(reply) > MAX_CHARACTERS:
        raise _malformed(f"expected at most {MAX_CHARACTERS} characters", reply)
    reply = reply.strip("\ufeff \t\r\n")
    rest = _after_thinking(reply)
    found = _whole(reply)  # all of it first: a reason may hold a tag of thinking
    if not isinstance(found, dict):
        found = _last(rest, code)
    if not isinstance(found, dict) or key not in found:
        raise _malformed(f"expected JSON with '{key}', alone or with the code at the end", rest)
    if code and "code" in found and _code(found) != code:
        raise _malformed(f"expected the code {code}", rest)
    return found


def _after_thinking(reply: str) -> str:
    """Returns the text after thinking; empty if it never ends.

    It ends at the first closing tag, as a later one may be a quotation. A template may have opened <think> in
    the prompt. What follows must carry the code, as the judge may also have quoted the tag from an answer.
    """
    for tag in _THINKING_TAGS:
        opened = reply.startswith(f"<{tag}>")
        _, closed, rest = reply.partition(f"</{tag}>")
        if opened or (closed and tag == "think"):
            return rest.strip()
    return reply


def _last(text: str, code: str) -> dict[str, Any] | None:
    """Returns the object that ends a text and has the code, or None.

    Raises:
        JudgeError: another object with the code differs from it, or breaks off.
    """
    if not code or code not in text.lower():
        return None
    for read in (text, _repaired(text[text.find("{") :])):
        objects = list(_objects(read))
        if objects and not read[objects[-1][1] :].strip("` \r\n\t") and _code(objects[-1][0]) == code:
            break
    else:
        return None
    last = objects[-1][0]
    coded = [found for found, _ in objects if _code(found) == code]
    announced = len(re.findall(rf'"code"\s*:\s*"{code}"', read, re.IGNORECASE))
    if announced > len(coded) or any(found != last for found in coded):
        raise _malformed("expected one judgement, got several that differ", text)
    return last


def _code(found: dict[str, Any]) -> str:
    return str(found.get("code", "")).strip().lower()


def _malformed(expected: str, got: str) -> JudgeError:
    shown = got if len(got) <= 200 else f"{got[:100]} ... {got[-100:]}"
    return JudgeError(f"{expected}; got {shown!r}", "malformed", retry=True)


def _whole(text: str) -> Any:
    """Returns the JSON value that a text consists of, in a code fence or without, or None."""
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1]
    for read in (str, _repaired):
        with suppress(json.JSONDecodeError, RecursionError):
            return _DECODER.decode(read(text).strip())
    return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise JudgeError(f"expected each criterion once, got {names[:20]}", "wrong_count", retry=True)
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once, strict=False)


def _repaired(text: str) -> str:
    """Returns the text with the three repairs that the module's docstring names."""
    text = _ESCAPE.sub(lambda match: match[0] if len(match[0]) > 1 else "\\\\", text)
    text = _COMMA.sub(lambda match: match[1] or "", text)
    return _LITERAL.sub(lambda match: match[1] or _LITERALS[match[2]], text)


def _objects(text: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields the outermost JSON objects in a text and where they end."""
    end = 0
    for start in islice(_START.finditer(text), MAX_STARTS):
        if start.start() >= end:
            try:
                found, end = _DECODER.raw_decode(text, start.start())
            except RecursionError:  # no judgement is nested so deeply; each further start would take as long
                return
            except (json.JSONDecodeError, JudgeError):
                continue
            yield found, end


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
    return ParsedVerdict(scale.value(entry[key]), valid(str(entry.get("reason") or "")))
