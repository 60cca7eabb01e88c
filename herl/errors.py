"""Everything that herl raises on purpose.

    HerlError
    ├── ConfigError            a key, a type or a combination in the configuration
    ├── DataError              a row or a file of the data set
    ├── JudgeError             a judge could not give a verdict: abstains, never scores 0
    │   └── AbstentionLimit    too many abstentions: the run stops
    ├── SamplerError           the sampler could not give an answer
    └── TrainingError          the update went wrong: no step was taken

Each message names what was expected, what was got, and the key, file or line to change.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HerlError(Exception):
    """Base of all errors that herl raises on purpose."""


class ConfigError(HerlError):
    """The configuration asks for something that does not exist or cannot work."""


class DataError(HerlError):
    """A data file or a row in it cannot be used."""


class JudgeError(HerlError):
    """A judge could not give a verdict. Raised in a judge, it makes the verdicts abstain."""


class AbstentionLimit(JudgeError):
    """The share of abstained verdicts went over the configured limit."""


class SamplerError(HerlError):
    """The sampler could not answer a request."""


class TrainingError(HerlError):
    """An optimiser step cannot be taken; the weights are those of the step before."""


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the nearest known name, or "" if none is near."""
    near = difflib.get_close_matches(got, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
