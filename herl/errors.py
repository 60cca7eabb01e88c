"""All errors that herl raises on purpose.

    HerlError
    ├── ConfigError            a key, a type or a combination in the configuration
    ├── DataError              a row or a file of the data set
    ├── JudgeError             a judge could not give a verdict; it abstains and never scores 0
    ├── JudgeStop              the run stops, with a checkpoint
    │   ├── AbstentionLimit    too many abstentions
    │   └── BudgetSpent        the judge's calls, tokens or money are used up
    ├── SamplerError           the sampler could not give an answer
    ├── TrainingError          the update failed; no step was taken
    └── RunStopped             a signal asked the run to end

Each message names the expected and the actual value, and the key, file or line to change.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from signal import Signals


class HerlError(Exception):
    """Base of all errors that herl raises on purpose."""


class ConfigError(HerlError):
    """The configuration asks for something that does not exist or cannot work."""


class DataError(HerlError):
    """A data file or a row in it cannot be used."""


class JudgeError(HerlError):
    """A judge could not give a verdict. The verdicts of the judge that raises it abstain.

    Args:
        message: The expected and the actual result.
        cause: One word to count the error by: timeout, connection, rate_limit, server, refused, malformed,
            wrong_count, not_cached, function or other.
        retry: Whether another try may succeed.
        retry_after: Seconds to wait before the next try, as requested by the endpoint.
    """

    def __init__(
        self, message: str, cause: str = "other", retry: bool = False, retry_after: float = 0.0
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.retry = retry
        self.retry_after = retry_after


class JudgeStop(HerlError):
    """Judging cannot continue as configured: the run saves a checkpoint and ends."""


class AbstentionLimit(JudgeStop):
    """The share of abstained verdicts exceeds the configured limit."""


class BudgetSpent(JudgeStop):
    """The judge's budget is used up."""


class SamplerError(HerlError):
    """The sampler could not answer a request."""


class TrainingError(HerlError):
    """An optimizer step cannot be taken; the weights are unchanged since the last step."""


class RunStopped(HerlError):
    """A signal asked the run to end. The run ended between two batches, with a checkpoint.

    Args:
        message: Text of the error.
        signal: The signal received.
    """

    def __init__(self, message: str, signal: Signals) -> None:
        super().__init__(message, signal)
        self.signal = signal

    def __str__(self) -> str:
        return str(self.args[0])


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the nearest known name, or "" if none is near."""
    near = difflib.get_close_matches(got, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def check_at_least(where: str, least: float, **values: float | None) -> None:
    """Checks settings in one part of the configuration; None always passes.

    Raises:
        ConfigError: names the first key whose value is too small.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{where}.{name}: expected at least {least:g}, got {value}")


def check_above(where: str, bound: float, **values: float | None) -> None:
    """Checks settings in one part of the configuration; None always passes.

    Raises:
        ConfigError: names the first key whose value is not above the bound.
    """
    for name, value in values.items():
        if value is not None and not value > bound:
            raise ConfigError(f"{where}.{name}: expected a number above {bound:g}, got {value}")
