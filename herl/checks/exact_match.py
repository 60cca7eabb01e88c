"""What an answer gives after it was cut and searched, compared with the right answers, letter for letter.

    answer -> up to a stop text -> steps (find a pattern, change case) -> without what is ignored -> equal?

These are lm-evaluation-harness's filters and its metric exact_match (lm_eval/filters/extraction.py,
lm_eval/api/metrics.py): a verdict here is the metric there, 1 or 0, for the same text.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from herl.checks import patterns

Step = Literal["lowercase", "uppercase", "remove_whitespace", "take_first"]
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_DIGITS = str.maketrans("", "", string.digits)


class Find(BaseModel):
    """A step: what a pattern finds, without white space around it.

    Of a pattern with several groups, the first one that is not empty counts.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    find: Annotated[str, Field(min_length=1, description="a pattern")]
    which: Annotated[int, Field(description="a whole number: 0 for the first match, -1 for the last")] = 0
    otherwise: Annotated[str, Field(description="a text")] = "[invalid]"
    """What is taken if the pattern finds nothing."""


def given(answer: str, until: Sequence[str], steps: Sequence[Step | Find]) -> str:
    """Returns what an answer gives: its text before the stop texts, after all steps.

    Raises:
        TooSlowError: a pattern took too long.
    """
    for stop in until:
        answer = answer.split(stop)[0] if stop else answer
    for step in steps:
        if isinstance(step, Find):
            answer = _found(answer, step)
        elif step == "remove_whitespace":
            answer = answer.removeprefix(" ")
        elif step != "take_first":  # of several answers; here there is one
            answer = answer.lower() if step == "lowercase" else answer.upper()
    return answer


def _found(answer: str, step: Find) -> str:
    matches = patterns.groups(step.find, answer)
    try:
        match = matches[step.which]
    except IndexError:
        return step.otherwise
    text = match if isinstance(match, str) else next((one for one in match if one), step.otherwise)
    return text.strip()


def compared(
    text: str,
    ignore_patterns: Sequence[str] = (),
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> str:
    """Returns the part of a text that counts when two are compared.

    >>> compared("It is $1,200.", [",", r"\\$", r"\\.$"], ignore_case=True)
    'it is 1200'

    Raises:
        TooSlowError: a pattern took too long.
    """
    for pattern in ignore_patterns:
        text = patterns.without(pattern, text)
    text = text.lower() if ignore_case else text
    text = text.translate(_PUNCTUATION) if ignore_punctuation else text
    return text.translate(_DIGITS) if ignore_numbers else text
