"""Prose on the command line: `prompt=` and `rubric=` of `herl improve` are quoted for Hydra's grammar.

Hydra would take a comma, a quote, an equals sign or `${` in a sentence for its grammar, and would make two
criteria of "Names two rivers, each in Europe." without a word.
"""

from __future__ import annotations

import re

from herl.errors import ConfigError

_PLAIN = ("", "-", "null")
"""Values that are not prose: `-` reads standard input."""
PATHS = (
    "run", "checkpoint", "resume", "out", "records", "answers", "human", "output_dir", "hydra.run.dir",
    "data", "data.train.path", "data.heldout", "data.heldout.path", "model", "model.path",
)  # fmt: skip
"""Settings whose values are paths, which may hold what Hydra takes for its grammar or for a number."""
_SAFE = re.compile(r"[A-Za-z./_-][A-Za-z0-9./_-]*|\s*[\[{].*", re.DOTALL)
"""Values that Hydra reads unchanged, and lists."""
_QUOTED = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""", re.DOTALL)
_OBJECT = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_ITEM = rf"(?:{_QUOTED.pattern}|{_OBJECT})"
_GRAMMAR = re.compile(rf"(?:{_ITEM}(?:\s*,\s*{_ITEM})*)?\s*,?", re.DOTALL)
"""Items in quotes or braces, which Hydra reads as they were written."""
_ABBREVIATED = re.compile(r"(?:\b[A-Z]|\b(?:Mr|Mrs|Ms|Dr|Prof|St|etc|vs|No|Inc|Ltd|e\.g|i\.e))\.$")
_END = re.compile(r"[.!?][\"')\]]*$")


def quoted(override: str) -> str:
    """Returns an override of `herl improve` in a form that Hydra reads as it was written.

    Args:
        override: An argument such as `prompt=Name two rivers, please.`.

    Raises:
        ConfigError: it is not clear where a criterion of `rubric=[...]` ends.
    """
    key, _, value = override.partition("=")
    name, listed = key.lstrip("+"), value.strip()
    if listed in _PLAIN:
        return override
    if name == "prompt" and not _is_quoted(value):
        return f"{key}={in_quotes(value)}"
    if name == "rubric" and listed[0] == "[" and listed[-1] == "]":
        inner = listed[1:-1].strip()
        if _GRAMMAR.fullmatch(inner):
            return override
        if re.match(_ITEM, inner) or re.search(r",\s*[\"'{]", inner):
            raise ConfigError(
                f"rubric: expected criteria that are all in quotes, or none, got {listed[:100]}. "
                """Write 'rubric=["Names two rivers, each in Europe.", "Is one line."]'"""
            )
        return f"{key}=[{', '.join(map(in_quotes, _criteria(inner)))}]"
    if name == "rubric" and not _is_quoted(listed):
        return f"{key}=[{in_quotes(listed)}]"  # one criterion
    return override


def quoted_path(override: str) -> str:
    """Returns an override whose value is a path, as `run=it's (1)`, in a form that Hydra reads as it was
    written. A value in quotes or with a reference stays unchanged."""
    key, _, value = override.partition("=")
    name = key.lstrip("+")
    plain = not value or _SAFE.fullmatch(value) or _is_quoted(value) or "${" in value
    choice = name in ("data", "model") and not {".", "/"} & set(value)
    return override if plain or choice or name not in PATHS else f"{key}={in_quotes(value)}"


def path_in(value: str) -> str:
    """Returns the path that a value, with or without quotes, stands for: the opposite of `in_quotes`."""
    if not _is_quoted(value):
        return value
    mark, inner = value[0], value[1:-1]
    inner = re.sub(rf"(\\*)\\{mark}", lambda found: found[1][::2] + mark, inner)
    closing = len(inner) - len(inner.rstrip("\\"))
    return inner[: len(inner) - closing // 2]


def _is_quoted(value: str) -> bool:
    return _QUOTED.fullmatch(value) is not None


def in_quotes(text: str) -> str:
    """Quotes a text for Hydra: backslashes count only before a quote; OmegaConf reads ${ as a reference."""
    inner = re.sub(r'(\\*)"', lambda found: found[1] * 2 + '\\"', _reference(text))
    closing = len(inner) - len(inner.rstrip("\\"))
    return f'"{inner}{closing * chr(92)}"'


def _reference(text: str) -> str:
    """Escapes ${, which OmegaConf would read as a reference, and the backslashes in front of it."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def _criteria(text: str) -> list[str]:
    """Splits the unquoted criteria of a list at the commas between sentences."""
    criteria: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if criteria and _ABBREVIATED.search(criteria[-1]):
            raise _unclear(criteria[-1], part)
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
