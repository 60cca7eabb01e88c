"""Words, keywords and quotation marks as a reader sees them, for the checks of verifiable instructions.

Every function takes time linear in the text, whatever the text is.
"""

from __future__ import annotations

import re
import unicodedata

from herl.types.task import UNSPACED

_UNSPACED = UNSPACED + "\uac00-\ud7af"
"""With Hangul, whose particles are attached."""
_IN_WORD = f"[^\\W_{_UNSPACED}]"
_BETWEEN = re.compile(r"(?:\s|[\u2012-\u2015\u2026]|--|\.\.\.)+")
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'"})


def straight(text: str) -> str:
    """Returns the text with typographic quotation marks and apostrophes as plain ones, in Unicode's NFC."""
    return unicodedata.normalize("NFC", text).translate(_QUOTES)


def words(text: str) -> list[str]:
    """Returns the words without the punctuation around them. Dashes separate words; hyphens do not.

    >>> words("“Don’t” – well-known, *isn't* it?")
    ["Don't", 'well-known', "isn't", 'it']
    """
    parts = (_trimmed(part) for part in _BETWEEN.split(straight(text)))
    return [part for part in parts if part]


def _trimmed(part: str) -> str:
    first, last = 0, len(part)
    while first < last and not part[first].isalnum():
        first += 1
    while last > first and not part[last - 1].isalnum():
        last -= 1
    return part[first:last]


def letters(word: str) -> str:
    """Returns a word without hyphens and apostrophes."""
    return "".join(character for character in word if character.isalnum())


def occurrences(keyword: str, text: str) -> int:
    """Returns how often a keyword stands in the text as a word, in any letter case.

    >>> occurrences("cat", "Cats? A cat, the _cat_, concatenated."), occurrences("a.b", "axb")
    (2, 0)
    """
    parts = straight(keyword).split()
    pattern = r"\s+".join(map(re.escape, parts))
    before = f"(?<!{_IN_WORD})" if re.match(_IN_WORD, parts[0]) else ""
    after = f"(?!{_IN_WORD})" if re.match(_IN_WORD, parts[-1][-1]) else ""
    return len(re.findall(before + pattern + after, straight(text), flags=re.IGNORECASE))


def compared(number: int, relation: str, bound: int) -> bool:
    """Returns whether a number is "less than" or "at least" a bound."""
    return number < bound if relation == "less than" else number >= bound
