"""Why a sound check gives no verdict: the answer breaks it, or it takes too long.

An answer that breaks its check fulfills nothing, so no answer gains by it. A check that takes too long
abstains.
"""

from __future__ import annotations


class BrokenByAnswerError(Exception):
    """A sound check could not be applied because of what the answer says, e.g. JSON nested too deep.

    The message never quotes the answer.
    """


class TooSlowError(Exception):
    """Applying the check took longer than a check may take. Its author decided that, so the answer is neither
    good nor bad for it.

    The message never quotes the answer.
    """
