r"""Which patterns may take exponential time, by their writing: a repeat of nothing but a repeat.

In `(\w+[\s.,]*)+`, each round of the outer repeat may end anywhere in a word, so a text that does not match
is tried in exponentially many ways. In `(\w+,)+` it can only end behind a comma. The rule is syntactic: it
knows no alternatives that overlap, such as `(a|aa)+`, and no backreferences.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from herl.checks.json_text import schema_patterns

_TOKEN = re.compile(
    r"""(?P<open>\((?:\?(?:P?<\w+>|<?[=!]|[:>|]|[\w-]*:|[\w-]+\)|\#[^)]*\)))?)
      | (?P<close>\))
      | (?P<bar>\|)
      | (?P<repeat>(?P<unbounded>[*+]|\{\d*,\}) | \{\d*,?\d*\} | \?) (?P<possessive>[?+]?)
      | (?P<nothing>[\^$] | \\[bBAZzGmM])
      | (?P<one>\\. | \[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\] | .)""",
    re.VERBOSE | re.DOTALL,
)


class _Sequence:
    """One alternative of a group, as far as it was read."""

    def __init__(self) -> None:
        self.parts: list[tuple[bool, bool]] = []
        """Whether each part repeats without end, and whether it may be empty."""

    @property
    def ambiguous(self) -> bool:
        """Whether it repeats, and nothing in it but a repeat must be there."""
        return any(repeats for repeats, _ in self.parts) and all(r or empty for r, empty in self.parts)

    @property
    def may_be_empty(self) -> bool:
        return all(empty for _, empty in self.parts)


def nested_repeat(pattern: str) -> str | None:
    r"""Returns the first group of a pattern that repeats without end what may repeat without end, or None.

    >>> nested_repeat(r"^(\w+[\s.,]*)+!$"), nested_repeat(r"^(\w+,)+!$"), nested_repeat(r"(?>a+)+b|[(a+)+]")
    ('(\\w+[\\s.,]*)+', None, None)
    """
    groups: list[tuple[int, str, list[_Sequence]]] = [(0, "", [_Sequence()])]
    start = 0
    last: list[_Sequence] = []  # the alternatives of the group that was just closed
    for token in _TOKEN.finditer(pattern):
        parts = groups[-1][2][-1].parts
        if token["open"]:
            if not token["open"].endswith(")"):  # flags and comments hold nothing
                groups.append((token.start(), token["open"], [_Sequence()]))
            continue
        if token["close"] and len(groups) > 1:
            start, opened, last = groups.pop()
            atomic = opened in ("(?>", "(?=", "(?!", "(?<=", "(?<!")
            repeats = not atomic and any(one.ambiguous for one in last)
            empty = any(one.may_be_empty for one in last) or opened in ("(?=", "(?!", "(?<=", "(?<!")
            last = last if repeats else []
            groups[-1][2][-1].parts.append((repeats, empty))
            continue
        if token["bar"]:
            groups[-1][2].append(_Sequence())
        elif token["repeat"] and parts:
            repeats, empty = parts[-1]
            if token["unbounded"] and token["possessive"] != "+":
                if last and pattern[token.start() - 1] == ")":
                    return pattern[start : token.end()]
                repeats = True
            minimum = re.match(r"\{([1-9])", token["repeat"]) is not None or token["repeat"][0] == "+"
            parts[-1] = (repeats, empty or not minimum)
        elif not token["nothing"]:
            parts.append((False, False))
        last = []
    return None


def patterns_of(check: Mapping[str, Any] | None) -> list[str]:
    """Returns the patterns in a check as it stands in the data, those of its JSON schema included."""
    found = check or {}
    if found.get("kind") == "json":
        return schema_patterns(found.get("schema"))
    if found.get("kind") == "exact_match":
        steps = [step.get("find") for step in found.get("steps") or () if isinstance(step, Mapping)]
        return [one for one in (*steps, *(found.get("ignore_patterns") or ())) if isinstance(one, str)]
    counted = found.get("of")
    pattern = counted.get("regex") if isinstance(counted, Mapping) else found.get("pattern")
    return [pattern] if isinstance(pattern, str) else []
