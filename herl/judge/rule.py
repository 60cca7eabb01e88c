"""Judges by checks written in the data: `criterion.check = {"kind": ..., ...}`.

| kind         | other keys                  | met when the answer ...                                     |
|--------------|-----------------------------|-------------------------------------------------------------|
| contains     | text                        | contains the text, in any letter case                       |
| contains_any | texts                       | contains at least one of the texts                          |
| contains_all | texts                       | contains every one of the texts                             |
| excludes     | texts                       | contains none of the texts                                  |
| starts_with  | text                        | starts with the text                                        |
| ends_with    | text                        | ends with the text                                          |
| equals       | text                        | is the text                                                 |
| regex        | pattern                     | has a match (Python syntax, case matters)                   |
| max_words    | count                       | has at most that many words                                 |
| min_words    | count                       | has at least that many words                                |
| count        | of, at_least, at_most       | has at_least to at_most words, sentences, lines, paragraphs |
|              |                             | or characters; or matches of `of: {regex: pattern}`         |
| json         | schema (optional)           | is JSON, alone or in one code fence, that fits the schema   |
| numeric      | value, tolerance (optional) | has `value` as its last number                              |
| python       | path, further arguments     | makes the function at `path` return true                    |

A criterion abstains, with the reason, if its check is missing, has an unknown kind or has wrong keys.
Functions are called only from modules that the configuration allows: data alone must not run code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jsonschema

from herl.errors import JudgeError, did_you_mean
from herl.judge.aggregation import weighted
from herl.judge.base import Aggregation, Judge
from herl.targets import located
from herl.types import Criterion, Judgement, Rollout, Task, Verdict

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_FENCE = re.compile(r"^```(?:json)?\s*\n(.*)\n\s*```$", re.DOTALL)
_UNITS = {
    "words": r"\S+",
    "sentences": r"[^.!?\s][^.!?]*(?:[.!?]+|$)",
    "lines": r"[^\n]*\S[^\n]*",
    "paragraphs": r"\S(?:.|\n(?!\s*\n))*",
    "characters": r"(?s:.)",
}


def _contains(answer: str, *, text: str) -> bool:
    return text.lower() in answer.lower()


def _contains_any(answer: str, *, texts: list[str]) -> bool:
    return any(_contains(answer, text=text) for text in texts)


def _contains_all(answer: str, *, texts: list[str]) -> bool:
    return all(_contains(answer, text=text) for text in texts)


def _excludes(answer: str, *, texts: list[str]) -> bool:
    return not _contains_any(answer, texts=texts)


def _starts_with(answer: str, *, text: str) -> bool:
    return answer.lstrip().lower().startswith(text.lower())


def _ends_with(answer: str, *, text: str) -> bool:
    return answer.rstrip().lower().endswith(text.lower())


def _equals(answer: str, *, text: str) -> bool:
    return answer.strip().lower() == text.strip().lower()


def _regex(answer: str, *, pattern: str) -> bool:
    return re.search(pattern, answer) is not None


def _max_words(answer: str, *, count: int) -> bool:
    return len(answer.split()) <= count


def _min_words(answer: str, *, count: int) -> bool:
    return len(answer.split()) >= count


def _count(answer: str, *, of: str | Mapping[str, str], at_least: int = 0, at_most: float = math.inf) -> bool:
    pattern = of["regex"] if isinstance(of, Mapping) else _UNITS.get(of)
    if pattern is None:
        raise JudgeError(f"count: expected 'of' to be one of {', '.join(_UNITS)}, or a regex, got {of!r}")
    return at_least <= sum(1 for _ in re.finditer(pattern, answer)) <= at_most


def _json(answer: str, *, schema: Mapping[str, Any] | None = None) -> bool:
    if schema is not None:
        jsonschema.Draft202012Validator.check_schema(schema)
    text = answer.strip()
    fenced = _FENCE.match(text)
    try:
        found = json.loads(fenced[1] if fenced else text)
    except (json.JSONDecodeError, RecursionError):
        return False
    return schema is None or jsonschema.Draft202012Validator(schema).is_valid(found)


def _numeric(answer: str, *, value: float, tolerance: float = 1e-6) -> bool:
    numbers = _NUMBER.findall(answer)
    last = float(numbers[-1].replace(",", "")) if numbers else math.nan
    return math.isclose(last, value, rel_tol=tolerance, abs_tol=tolerance)


CHECKS: dict[str, Callable[..., bool]] = {
    "contains": _contains,
    "contains_any": _contains_any,
    "contains_all": _contains_all,
    "excludes": _excludes,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "equals": _equals,
    "regex": _regex,
    "max_words": _max_words,
    "min_words": _min_words,
    "count": _count,
    "json": _json,
    "numeric": _numeric,
}


class RuleJudge(Judge):
    """Applies each criterion's check. Free and deterministic.

    Args:
        aggregation: How verdicts and weights become the reward.
        python_modules: Modules whose functions `python` checks may call.
    """

    def __init__(self, aggregation: Aggregation = weighted, python_modules: Sequence[str] = ()) -> None:
        super().__init__(aggregation)
        self._python_modules = tuple(python_modules)

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns a verdict per criterion; criteria without a usable check abstain."""
        verdicts = [self._verdict(criterion, rollout.text) for criterion in task.rubric.criteria]
        return self.verdict_sum(task, rollout, verdicts)

    def _verdict(self, criterion: Criterion, answer: str) -> Verdict:
        try:
            return Verdict(criterion_id=criterion.id, met=self._apply(criterion, answer))
        except Exception as error:  # checks are data, and users' functions may raise anything
            reason = f"check failed: {type(error).__name__}: {error}"
            return Verdict(criterion_id=criterion.id, met=None, reason=reason)

    def _apply(self, criterion: Criterion, answer: str) -> bool:
        parameters = dict(criterion.check or {})
        kind = parameters.pop("kind", None)
        if kind == "python":
            return bool(self._function(str(parameters.pop("path", "")))(answer, **parameters))
        if kind not in CHECKS:
            raise JudgeError(
                f"criterion '{criterion.id}': expected check.kind to be one of "
                f"{', '.join([*CHECKS, 'python'])}, got {kind!r}." + did_you_mean(str(kind), CHECKS)
            )
        return CHECKS[kind](answer, **parameters)

    def _function(self, path: str) -> Callable[..., object]:
        if path.rpartition(".")[0] not in self._python_modules:
            raise JudgeError(
                "expected a function from one of judge.python_modules "
                f"({', '.join(self._python_modules) or 'which is empty'}), got '{path}'"
            )
        function: Callable[..., object] = located("check.path", path)
        return function
