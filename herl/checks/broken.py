"""What an answer can do to a check: break it. Such an answer fulfills nothing, so no answer gains by it."""

from __future__ import annotations


class BrokenByAnswerError(Exception):
    """A sound check could not be applied because of what the answer says, e.g. JSON nested too deep.

    The message never quotes the answer.
    """


class TooSlowError(BrokenByAnswerError):
    """Matching the answer took longer than a check may take."""
