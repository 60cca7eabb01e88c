"""All errors that herl raises on purpose.

    HerlError
    ├── ConfigError            a key, a type or a combination in the configuration
    ├── DataError              a row or a file of the data set
    ├── JudgeError             a judge could not give a verdict; it abstains and never scores 0
    ├── JudgeStop              the run stops, with a checkpoint
    │   ├── AbstentionLimit    too many abstentions
    │   └── BudgetSpent        the judge's calls, tokens or money are used up
    ├── AuditLimit             an audit found a judge beyond one of its limits
    ├── SamplerError           the sampler could not give an answer
    ├── TrainingError          the update failed; no step was taken
    └── RunStopped             a signal asked the run to end

Each message names the expected and the actual value, and the key, file or line to change.
"""

from __future__ import annotations

import difflib
import os
import re
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
            wrong_count, not_cached, function, environment or other.
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


class AuditLimit(HerlError):
    """A judge changes its verdicts, or differs from another, more than `herl audit` allows."""


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


def nearest(got: str, known: Iterable[str]) -> str | None:
    """Returns the known name that is spelled most like this one, or None if none is near."""
    return next(iter(difflib.get_close_matches(got, list(known), n=1, cutoff=0.6)), None)


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the nearest known name, or "" if none is near."""
    near = nearest(got, known)
    return "" if near is None else f" Did you mean '{near}'?"


def check_at_least(where: str, least: float, **values: float | None) -> None:
    """Checks settings in one part of the configuration; None always passes.

    Raises:
        ConfigError: names the first key whose value is too small.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{where}.{name}: expected at least {least:g}, got {value}")


def check_keywords_at_least(where: str, least: float, function: object, *names: str) -> None:
    """Like `check_at_least`, for arguments that a `functools.partial` of the configuration holds.

    Raises:
        ConfigError: names the first key whose value is too small.
    """
    held = getattr(function, "keywords", {})
    check_at_least(where, least, **{name: held[name] for name in names if name in held})


def check_above(where: str, bound: float, **values: float | None) -> None:
    """Checks settings in one part of the configuration; None always passes.

    Raises:
        ConfigError: names the first key whose value is not above the bound.
    """
    for name, value in values.items():
        if value is not None and not value > bound:
            raise ConfigError(f"{where}.{name}: expected a number above {bound:g}, got {value}")


def is_variable_name(value: str) -> bool:
    """Returns whether a value can be the name of an environment variable, and does not look like a key.

    >>> is_variable_name("OPENAI_API_KEY"), is_variable_name("hf_AbCdEfGhIjKlMnOpQrStUvWx")
    (True, False)
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        return False
    parts = value.split("_")
    random = any(
        len(part) >= 20 or (len(part) >= 12 and re.search(r"\d", part) and re.search(r"[A-Za-z]", part))
        for part in parts
    )
    return value in os.environ or not random


def variable(key: str, name: str | None) -> str:
    """Returns the value of the environment variable that a setting names; "" if it names none.

    Raises:
        ConfigError: it is not set, HTTP cannot send its value, or what is given looks like a key itself.
            Neither is repeated.
    """
    if name is None:
        return ""
    check_variable_name(key, name)
    if not (value := os.environ.get(name, "").strip()):
        raise ConfigError(f"{key}: the environment variable {name} is not set")
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(
            f"{key}: expected a key of printable ASCII characters, which HTTP can send, in the environment "
            f"variable {name}, got another character, such as a typographic quote or a line break"
        )
    return value


def check_variable_name(key: str, name: str) -> None:
    """Checks that a setting names an environment variable, and is not the key that belongs into one.

    Raises:
        ConfigError: does not repeat what was given.
    """
    if not is_variable_name(name):
        raise ConfigError(
            f"{key}: expected the name of an environment variable, such as OPENAI_API_KEY, got something "
            "else. If it is the key itself, put it into a variable, and give the variable's name"
        )
