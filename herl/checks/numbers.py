r"""Finds the number that an answer gives, for the check `numeric`.

**Which number.** The first of these that the answer has:

1. the content of the last complete `\boxed{...}`; numbers around it do not count
2. the last line `#### 42` (GSM8K) that holds nothing but a number
3. the last number of the text

Within the chosen text the last writing counts. If it is one that is not read (below), the answer has no
number: taking an earlier one would mistake `2\sqrt{3}` for 3.

**Which writings.**

| writing   | examples and rules                                                                     |
|-----------|----------------------------------------------------------------------------------------|
| plain     | 42, 3.14, .5, 5. at the end of a sentence; digits of any script                        |
| sign      | -5, +5, − (U+2212), -$5. No sign: the hyphens of 3-5, 7 - 5, COVID-19, a bullet `- 5`  |
| thousands | 1,234,567.89; 1 234 567, also with thin or no-break spaces; 1_000; 1'000; 12,34,567;   |
|           | 1{,}000 and 1\,000                                                                     |
| European  | 1.234,5 and 1.234.567; 3,5 outside brackets and lists. 1,234 is a thousand and more,   |
|           | 1.234 is 1 and a part                                                                  |
| exponent  | 1e-3, 3.2E5, 3.2×10^5, 3.2 \times 10^{5}, 3.2*10**5, 10⁵, 2^{10}                        |
| fraction  | 3/4, ¾, \frac{3}{4}, \dfrac34, and mixed: 1 1/2, 1½, 1\frac{1}{2}                      |
| percent   | 50%, 50\%, 50 percent: equal to 50 and to 0.5                                          |
| scale     | 5 million: equal to 5 and to 5000000 (hundred, thousand, million, billion, trillion)   |
| units     | $5, 5€, 5 km, 12m, 30°C, 5 m^2: the unit is ignored, and so is a variable, as in 2x     |

**Not read.** Roots, π, a fraction with anything but numbers, a division by zero, versions and dates with
dots or slashes (1.2.3, 3/4/2024), more than 400 digits, powers beyond 10^±400. Digits after a Latin or
Greek letter (H2O, x1, v2), in an index or in the exponent of a unit are no numbers, nor are NaN, infinity,
number words and suffixes such as 5k.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MAX_DIGITS = 400
"""Limit on digits and on powers of ten, above those of any value. Longer numbers are never computed."""

_ARGUMENT = r"(?:\{(?:[^{}]|\{[^{}]*\})*\}|\d)"
_EXPONENT = r"(?:(?:\^|\*\*)\s?(?:\{\s?[-+]?\d+\s?\}|\(\s?[-+]?\d+\s?\)|[-+]?\d+)|[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)"
_LETTERS = "A-Za-zÀ-ÖØ-öø-ɏΑ-ΟΡ-Ωα-ορ-ω"  # without π
_DECIMAL = r"""
    (?P<european>
        \d{1,3}(?:\.\d{3})+,\d+(?![.,]?\d)                                  # 1.234,5
      | [1-9]\d{0,2}(?:\.\d{3}){2,}(?![.,]?\d)                              # 1.234.567
    )
  | (?P<gapped>
        [1-9]\d{0,2}(?P<gap>[ \u00a0\u2009\u202f_'’~]|\\[,;:\ ]|,\\!)
        \d{3}(?:(?P=gap)\d{3})*(?:[.,]\d+)?(?!\w)                           # 1 234 567
    )
  | (?P<american>
        [1-9]\d{0,2}(?:(?:,|\{,\})\d{3})+(?:\.\d+)?(?!\d|(?:,|\{,\})\d)     # 1,234,567.89
      | [1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?(?!,?\d)                         # 12,34,567
    )
  | (?P<comma>
        (?!(?:(?<=[(\[{])|(?<=[(\[{]-))\d+,\d+[)\]}])                       # but not in (3,5)
        (?<!\d,)\d+(?:,|\{,\})\d+(?![.,]?\d)                                # 3,5
    )
  | (?P<plain> \d+\.\d+ | \d+ | (?<![\w.])\.\d+ )
"""
_SKIPPED = rf"""
    [\^_]\s?(?:\{{[^{{}}]*\}}|\([^()]*\)|[-+]?\w+)                          # an index, a unit's exponent
  | (?!\\(?:[dtc]?frac|sqrt|pi)(?![A-Za-z]))\\[A-Za-z]+                     # a command of LaTeX
  | (?!(?:sqrt\s?\(|pi\s?[/*]|(?:USD|EUR|GBP|CHF|INR|Rs)\d))
    [{_LETTERS}]+(?:\d\w*(?:\.\d+)*)?                                       # a word, H2O, v1.2
"""
_UNREAD = rf"""
    (?!\d{{1,3}}(?:\.\d{{3}}){{2,}}(?!\.?\d)) \d+(?:\.\d+){{2,}}            # 1.2.3
  | \d+(?:/\d+){{2,}}                                                       # 3/4/2024
  | (?: \\sqrt\s?(?:\[[^\]]{{0,40}}\])?\s?(?:{_ARGUMENT}|\w) | √\s?(?:\([^()]*\)|[\d.]+) | sqrt\s?\([^()]*\)
      | π | \\pi(?![A-Za-z]) | (?<=\d)\s?pi\b | pi(?=\s?[/*])
    )(?:\s?[/*]\s?\d+)?
"""
_NUMBER = rf"""
    (?P<sign> (?<![\w)\]}}%.+-])[-+] | (?<=[=≈(])\s?[-+]\s? )?
    (?:\\?[$€£¥]\s?|USD|EUR|GBP|CHF|INR|Rs\.?)?(?P<inner>(?<=[$€£¥])-)?
    (?:
        (?P<whole>\d+)?\s?\\[dtc]?frac\s?(?P<above>{_ARGUMENT})\s?(?P<below>{_ARGUMENT})
      | (?P<ones>\d+)?\s?(?P<vulgar>[¼½¾⅐-⅞])
      | (?:(?P<mixed>\d+)[ \u00a0\u2009\u202f](?=\d+[/⁄]\d))?
        (?:{_DECIMAL})
        (?: [eE](?P<e>[-+]?\d+)(?!\w)
          | \s?(?:×|[xX]|\*|·|⋅|\\times|\\cdot)\s?10\s?(?P<ten>{_EXPONENT})
          | \s?(?P<power>{_EXPONENT})
          | \s?[/⁄]\s?(?P<under>\d+(?:\.\d+)?)(?!\d|/|\.\d)
        )?
    )
    (?P<percent>\s?(?:\\?%|％|per\s?cent\b))?
    (?:\s(?P<scale>hundred|thousand|million|billion|trillion)\b)?
"""
_TOKEN = re.compile(
    rf"(?P<skipped>{_SKIPPED})|(?P<unread>{_UNREAD})|(?P<number>{_NUMBER})", re.VERBOSE | re.IGNORECASE
)
_BRACE = re.compile(r"\\(?:boxed|fbox)\s?\{|\\[{}]|[{}]")
_PERCENT = re.compile(r"\s?\\?%")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MINUS = str.maketrans(dict.fromkeys("−–﹣－", "-"))
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")


class _NotReadError(Exception):
    """The writing is no number that this module computes."""


def gives_number(answer: str, value: float, tolerance: float) -> bool:
    """Whether the answer's number differs from the value by at most tolerance x max(1, |value|)."""
    expected = Fraction(str(value))  # 0.1 is meant as written, not as the nearest double
    margin = Fraction(str(tolerance)) * max(Fraction(1), abs(expected))
    return any(abs(number - expected) <= margin for number in readings(answer))


def readings(answer: str) -> tuple[Fraction, ...]:
    """Returns what the answer's number can mean: usually one value, two for 50% and 5 million, or none."""
    text = _plain(answer)
    box = _last_box(text)
    if box is not None:
        return _last(box)
    for line in reversed(text.split("\n")):
        rest = line.strip().removeprefix("####").strip().rstrip(".")
        if line.lstrip().startswith("####") and (whole := _TOKEN.fullmatch(rest)) and whole["number"]:
            return _values(whole)
    return _last(text)


def _plain(answer: str) -> str:
    """One kind of minus, and the digits 0 to 9."""
    text = answer.translate(_MINUS)
    if text.isascii():
        return text
    return "".join(
        str(unicodedata.decimal(char)) if not char.isascii() and char.isdecimal() else char for char in text
    )


def _last_box(text: str) -> str | None:
    r"""The content of the \boxed{} that closes last, with a sign before it and a percent sign behind it."""
    opened: list[
        tuple[int, int] | None
    ] = []  # (start, start of the content) of each box; None of other braces
    found: str | None = None
    for brace in _BRACE.finditer(text):
        if brace[0][-1] == "}" and brace[0] != r"\}":
            box = opened.pop() if opened else None
            if box is not None:
                minus = "-" if text[max(0, box[0] - 1) : box[0]] == "-" else ""
                percent = _PERCENT.match(text, brace.end())
                found = minus + text[box[1] : brace.start()] + (percent[0] if percent else "")
        elif brace[0] not in (r"\{", r"\}"):
            opened.append((brace.start(), brace.end()) if brace[0] != "{" else None)
    return found


def _last(text: str) -> tuple[Fraction, ...]:
    last = None
    for token in _TOKEN.finditer(text):
        if token["skipped"] is None:
            last = token
    return () if last is None or last["unread"] else _values(last)


def _values(token: re.Match[str]) -> tuple[Fraction, ...]:
    try:
        number = _magnitude(token)
    except (_NotReadError, ZeroDivisionError):
        return ()
    if "-" in (token["sign"] or "") or token["inner"]:
        number = -number
    if token["percent"]:
        return number, number / 100
    if token["scale"]:
        return number, number * 10 ** _SCALES[token["scale"].lower()]
    return (number,)


def _magnitude(token: re.Match[str]) -> Fraction:
    if token["above"]:
        return _mixed(token["whole"], _argument(token["above"]) / _argument(token["below"]))
    if token["vulgar"]:
        part = Fraction(unicodedata.numeric(token["vulgar"])).limit_denominator(10)
        return _mixed(token["ones"], part)
    number = _decimal(token)
    if token["under"]:
        return _mixed(token["mixed"], number / _digits(token["under"]))
    if token["e"]:
        return number * _power(Fraction(10), token["e"])
    if token["ten"]:
        return number * _power(Fraction(10), token["ten"])
    return _power(number, token["power"]) if token["power"] else number


def _mixed(whole: str | None, part: Fraction) -> Fraction:
    """3 1/2 is 3.5. With an improper fraction the number before it is another one."""
    return part + _digits(whole) if whole and 0 <= part < 1 else part


def _argument(braced: str) -> Fraction:
    r"""An argument of \frac: one number and nothing else."""
    inner = _TOKEN.fullmatch(braced.strip("{}").strip())
    if inner is None or not inner["number"] or not (values := _values(inner)):
        raise _NotReadError
    return values[0]


def _decimal(token: re.Match[str]) -> Fraction:
    if token["european"]:
        return _digits(token["european"].replace(".", "").replace(",", "."))
    if token["gapped"]:
        return _digits(token["gapped"].replace(token["gap"], "").replace(",", "."))
    if token["american"]:
        return _digits(re.sub(r"\{,\}|,", "", token["american"]))
    if token["comma"]:
        return _digits(re.sub(r"\{,\}|,", ".", token["comma"]))
    return _digits(token["plain"])


def _digits(writing: str) -> Fraction:
    whole, _, decimals = writing.partition(".")
    if len(whole) > MAX_DIGITS:
        raise _NotReadError
    return Fraction(f"{whole or 0}.{decimals[:MAX_DIGITS] or 0}")


def _power(base: Fraction, exponent: str) -> Fraction:
    digits = re.sub(r"[^\d+-]", "", exponent.translate(_RAISED))
    if len(digits) > 20:
        raise _NotReadError
    times = int(digits)
    if base == 10 and times < -MAX_DIGITS:
        return Fraction(0)
    if abs(times) * len(f"{base.numerator}{base.denominator}") > 2 * MAX_DIGITS:
        raise _NotReadError
    return base**times
