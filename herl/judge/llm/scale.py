"""The verdicts a judging model may give on one criterion, and their values in [0, 1]."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from herl.errors import ConfigError, JudgeError

CANNOT_TELL = "cannot tell"
_MET = {"met", "yes", "true", "1", "satisfied", "fulfilled", "pass"}
_NOT_MET = {"not met", "no", "false", "0", "unmet", "not satisfied", "not fulfilled", "fail"}
_UNKNOWN = {CANNOT_TELL, "can not tell", "unknown", "unclear", "none", "null"}


@dataclass(frozen=True, slots=True)
class Scale:
    """The allowed verdicts, words or numbers, with their values.

    Args:
        values: Verdict -> its value in [0, 1]; empty for met / not met.
        numeric: Whether the verdicts are whole numbers.
    """

    values: Mapping[str, float]
    numeric: bool = False

    @classmethod
    def of(cls, setting: Sequence[int] | Mapping[str, float] | None) -> Scale:
        """Returns the scale for a setting: null, [lowest, highest], or {word: value}.

        Raises:
            ConfigError: the setting has another form.
        """
        if setting is None:
            return cls({})
        if isinstance(setting, Mapping):
            if wrong := [word for word in setting if not isinstance(word, str)]:
                raise ConfigError(
                    f"judge.scale: expected words, got {wrong[0]!r} in {dict(setting)}. Put numbers into "
                    "quotes, and words that YAML reads as true or false, such as no; a scale of numbers is "
                    "[lowest, highest]"
                )
            values = {_normalized(word): value for word, value in setting.items()}
            if len(values) < 2 or not all(_is_number(n) and 0.0 <= n <= 1.0 for n in values.values()):
                raise ConfigError(
                    f"judge.scale: expected at least two words with values in [0, 1], got {setting}"
                )
            return cls({word: float(value) for word, value in values.items()})
        whole = isinstance(setting, Sequence) and all(type(n) is int for n in setting)
        if not whole or len(setting) != 2 or not setting[0] < setting[1]:
            raise ConfigError(
                f"judge.scale: expected [lowest, highest], two whole numbers, or words with values, "
                f"got {setting!r}"
            )
        low, high = setting
        return cls({str(n): (n - low) / (high - low) for n in range(low, high + 1)}, numeric=True)

    @property
    def graded(self) -> bool:
        """Whether verdicts are finer than met and not met."""
        return bool(self.values)

    @property
    def words(self) -> list[str]:
        """The allowed verdicts, "cannot tell" included."""
        return [*(self.values or ("met", "not met")), CANNOT_TELL]

    @property
    def rule(self) -> str:
        """Explains the scale to the model."""
        if not self.graded:
            return (
                'The verdict is "met" if the statement is true of the answer, "not met" if it is not, and '
                f'"{CANNOT_TELL}" only if the material does not allow to decide.'
            )
        words = list(self.values)
        verdict = (
            f"a whole number from {words[0]} (not at all) to {words[-1]} (fully)"
            if self.numeric
            else "one of " + ", ".join(f'"{word}"' for word in words)
        )
        return f'The verdict is {verdict}, or "{CANNOT_TELL}" only if the material does not allow to decide.'

    def value(self, verdict: object) -> float | None:
        """Returns the value of a verdict in [0, 1], or None for "cannot tell".

        Raises:
            JudgeError: the verdict is not on the scale.
        """
        if verdict is None:  # not the word "none", which a scale may have
            return None
        if isinstance(verdict, float) and verdict.is_integer():
            verdict = int(verdict)
        word = _normalized(str(verdict))
        if word in self.values and not isinstance(verdict, bool):
            return self.values[word]
        if word in _UNKNOWN:
            return None
        if not self.graded and (word in _MET or word in _NOT_MET):
            return float(word in _MET)
        expected = ", ".join(self.words)
        raise JudgeError(f"expected one of {expected}; got {str(verdict)[:60]!r}", "malformed", retry=True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _normalized(word: str) -> str:
    return re.sub(r"(?:[\s_]|-(?!\d))+", " ", word).strip().strip(".!").lower()
