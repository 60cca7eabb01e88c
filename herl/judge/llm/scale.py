"""What a judging model may say about one criterion, and what that is worth in [0, 1]."""

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
    """Words or numbers with their values. Without values: met and not met.

    Args:
        values: What may be said -> its value in [0, 1]; empty for met / not met.
        numeric: Whether what may be said are whole numbers.
    """

    values: Mapping[str, float]
    numeric: bool = False

    @classmethod
    def of(cls, setting: Sequence[int] | Mapping[str, float] | None) -> Scale:
        """Returns the scale of a configuration: null, [lowest, highest], or {word: value}.

        Raises:
            ConfigError: it is none of these.
        """
        if setting is None:
            return cls({})
        if isinstance(setting, Mapping):
            values = {_plain(word): float(value) for word, value in setting.items()}
            if len(values) < 2 or not all(0.0 <= value <= 1.0 for value in values.values()):
                raise ConfigError(
                    f"judge.scale: expected two words or more with values in [0, 1], got {setting}"
                )
            return cls(values)
        if len(setting) != 2 or not setting[0] < setting[1]:
            raise ConfigError(f"judge.scale: expected [lowest, highest], got {list(setting)}")
        low, high = setting
        return cls({str(n): (n - low) / (high - low) for n in range(low, high + 1)}, numeric=True)

    @property
    def graded(self) -> bool:
        """Whether there is more than met and not met."""
        return bool(self.values)

    @property
    def words(self) -> list[str]:
        """What may be said."""
        return [*(self.values or ("met", "not met")), CANNOT_TELL]

    @property
    def rule(self) -> str:
        """The scale, told to the model."""
        if not self.graded:
            return (
                'The verdict is "met" if the statement is true of the answer, "not met" if it is not, and '
                f'"{CANNOT_TELL}" only if the material does not allow to decide.'
            )
        words = list(self.values)
        told = (
            f"a whole number from {words[0]} (not at all) to {words[-1]} (fully)"
            if self.numeric
            else "one of " + ", ".join(f'"{word}"' for word in words)
        )
        return f'The verdict is {told}, or "{CANNOT_TELL}" only if the material does not allow to decide.'

    def value(self, said: object) -> float | None:
        """Returns what was said as a number in [0, 1], or None for "cannot tell".

        Raises:
            JudgeError: it is not on the scale.
        """
        if isinstance(said, float) and said.is_integer():
            said = int(said)
        word = _plain(str(said))
        if word in self.values and not isinstance(said, bool):
            return self.values[word]
        if word in _UNKNOWN:
            return None
        if not self.graded and (word in _MET or word in _NOT_MET):
            return float(word in _MET)
        raise JudgeError(f"expected one of {self.words}, got {str(said)[:60]!r}", "malformed", retry=True)


def _plain(word: str) -> str:
    return re.sub(r"(?:[\s_]|-(?!\d))+", " ", word).strip().strip(".!").lower()
