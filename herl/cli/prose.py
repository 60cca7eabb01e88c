"""Prose on the command line: `prompt=` and `rubric=` of `herl improve` are quoted for Hydra's grammar.

Hydra would take a comma, a quote, an equals sign or `${` in a sentence for its grammar, and would make two
criteria of "Names two rivers, each in Europe." without a word.
"""

from __future__ import annotations

import re

from herl.errors import ConfigError

_PLAIN = ("", "-", "null")
"""Values that are not prose: `-` reads standard input."""
_END = re.compile(r"[.!?][\"')\]]*$")


def quoted(override: str) -> str:
    """Returns an override of `herl improve` in a form that Hydra reads as it was written.

    Args:
        override: An argument such as `prompt=Name two rivers, please.`.

    Raises:
        ConfigError: it is not clear where a criterion of `rubric=[...]` ends.
    """
    key, _, value = override.partition("=")
    if key == "prompt" and value not in _PLAIN and not _is_quoted(value):
        return f"prompt={_quote(value)}"
    listed = value.strip()
    if (
        key == "rubric"
        and listed[:1] == "["
        and listed[-1:] == "]"
        and not re.search(r"[{}]|[\[,]\s*[\"']", listed)
    ):
        return f"rubric=[{', '.join(map(_quote, _criteria(listed[1:-1])))}]"
    return override


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"


def _quote(text: str) -> str:
    """Quotes a text for Hydra: backslashes count only before a quote; OmegaConf reads ${ as a reference."""
    inner = re.sub(r'(\\*)"', lambda found: found[1] * 2 + '\\"', text.replace("${", r"\${"))
    closing = len(inner) - len(inner.rstrip("\\"))
    return f'"{inner}{closing * chr(92)}"'


def _criteria(text: str) -> list[str]:
    """Splits the unquoted criteria of a list at the commas between sentences."""
    criteria: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        ended = not criteria or bool(_END.search(criteria[-1]))
        goes_on = part[0].islower()
        if ended and not (criteria and goes_on):
            criteria.append(part)
        elif goes_on and not ended and criteria[-1][0].isupper():
            criteria[-1] += f", {part}"
        else:
            raise _unclear(criteria[-1], part)
    for criterion in criteria:
        if "," in criterion and not _END.search(criterion):
            raise _unclear(*criterion.split(", ", 1))
    return criteria


def _unclear(before: str, after: str) -> ConfigError:
    return ConfigError(
        f"rubric: expected criteria that end with a full stop or stand in quotes, got '{before}, {after}', "
        "which may be one criterion or two. Quote each one, as in "
        f"""'rubric=["Names two rivers, each in Europe.", "Is one line."]'"""
    )
