"""Checks written in the data: their kinds, how they are read, and how they are applied to an answer.

    {"kind": "contains", "text": "fish"}  -- read_check -->  Contains(text="fish")  -- met(answer) -->  True

`herl.data` reads every check together with its row, so a mistake in one is an error in that row; the judges
apply them. Nothing here knows rows, criteria or judges.
"""

from herl.checks.broken import BrokenByAnswerError, TooSlowError
from herl.checks.kinds import KINDS, CallsTool, Check, Instruction, Python
from herl.checks.reading import read_check, without_nulls

__all__ = [
    "KINDS",
    "BrokenByAnswerError",
    "CallsTool",
    "Check",
    "Instruction",
    "Python",
    "TooSlowError",
    "read_check",
    "without_nulls",
]
