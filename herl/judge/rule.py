"""Judges by checks that stand in the data: `criterion.check = {"kind": ..., ...}`.

| kind         | other keys                  | met when the answer ...                              |
|--------------|-----------------------------|------------------------------------------------------|
| contains     | text                        | contains the text (letter case does not matter)      |
| contains_any | texts                       | contains at least one of the texts                   |
| starts_with  | text                        | starts with the text                                 |
| regex        | pattern                     | has a match (Python syntax)                          |
| max_words    | count                       | has at most that many words                          |
| min_words    | count                       | has at least that many words                         |
| numeric      | value, tolerance (optional) | has `value` as its last number                       |

A criterion with no check, an unknown kind or wrong keys abstains and says why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from herl.errors import JudgeError, did_you_mean
from herl.judge.base import Judge
from herl.types import Criterion, Judgement, Rollout, Task, Verdict

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def _contains(answer: str, *, text: str) -> bool:
    return text.lower() in answer.lower()


def _contains_any(answer: str, *, texts: list[str]) -> bool:
    return any(_contains(answer, text=text) for text in texts)


def _starts_with(answer: str, *, text: str) -> bool:
    return answer.lstrip().lower().startswith(text.lower())


def _regex(answer: str, *, pattern: str) -> bool:
    return re.search(pattern, answer) is not None


def _max_words(answer: str, *, count: int) -> bool:
    return len(answer.split()) <= count


def _min_words(answer: str, *, count: int) -> bool:
    return len(answer.split()) >= count


def _numeric(answer: str, *, value: float, tolerance: float = 1e-6) -> bool:
    numbers = _NUMBER.findall(answer)
    last = float(numbers[-1].replace(",", "")) if numbers else math.nan
    return math.isclose(last, value, rel_tol=tolerance, abs_tol=tolerance)


CHECKS: dict[str, Callable[..., bool]] = {
    "contains": _contains,
    "contains_any": _contains_any,
    "starts_with": _starts_with,
    "regex": _regex,
    "max_words": _max_words,
    "min_words": _min_words,
    "numeric": _numeric,
}


class RuleJudge(Judge):
    """Applies each criterion's own check. Costs nothing and never disagrees with itself."""

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns a verdict per criterion; those without a usable check abstain."""
        verdicts = [_verdict(criterion, rollout.text) for criterion in task.rubric.criteria]
        return self.verdict_sum(task, rollout, verdicts)


def _verdict(criterion: Criterion, answer: str) -> Verdict:
    try:
        return Verdict(criterion_id=criterion.id, met=_apply(criterion, answer))
    except (JudgeError, TypeError, ValueError, AttributeError, re.error) as error:
        return Verdict(criterion_id=criterion.id, met=None, reason=f"check failed: {error}")


def _apply(criterion: Criterion, answer: str) -> bool:
    parameters = dict(criterion.check or {})
    kind = parameters.pop("kind", None)
    if kind not in CHECKS:
        raise JudgeError(
            f"criterion '{criterion.id}': expected a check of kind {', '.join(CHECKS)}, got {kind!r}."
            + did_you_mean(str(kind), CHECKS)
        )
    return CHECKS[kind](answer, **parameters)
