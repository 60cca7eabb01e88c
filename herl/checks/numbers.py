r"""Finds the number that an answer gives, for the check `numeric`.

**Which number.** The first of these that the answer has:

1. the content of the last complete `\boxed{...}`; numbers around it do not count
2. the last line `#### 42` (GSM8K) that holds nothing but a number
3. the last number of the text

Within the chosen text the last writing counts. If it is one that is not read (below), the answer has no
number: taking an earlier one would mistake `2\sqrt{3}` for 3.

A box must hold the number itself, with text, units or a variable. What follows the last =, \approx or arrow
in it counts. If that has a writing that is not read, a command that neither shapes text nor is a Greek
letter, or an operator beside the number (`2 + 3`, `12!`, `5x/2`, `2(3)`, `x > 5`), the answer has no number.

**Which writings.**

| writing   | examples and rules                                                                     |
|-----------|----------------------------------------------------------------------------------------|
| plain     | 42, 3.14, .5, 5. at the end of a sentence; digits and separators of any script; _5_    |
| repeating | 0.1(6), 0.1\overline{6}, also with \bar or one \dot                                    |
| sign      | -5, +5, − (U+2212), -$5, -\boxed{5}; `- \boxed{5}` at the start or after = ( : $       |
|           | No sign: the hyphens of 3-5, 7 - 5, COVID-19, a bullet `- 5`                           |
| thousands | 1,234,567.89; 1 234 567, also with thin or no-break or two spaces; 1_000; 1'000, 1´000; |
|           | 12,34,567; 1{,}000 and 1\,000                                                          |
| European  | 1.234,5 and 1.234.567; 3,5 outside brackets and lists. 1,234 is a thousand and more,   |
|           | 1.234 is 1 and a part                                                                  |
| exponent  | 1e-3, 3.2E5, 3.2×10^5, 3.2 \times 10^{5}, 3.2*10**5, 10⁵, 2^{10}                        |
| fraction  | 3/4, 3/-4, 3/(-4), ¾, \frac{3}{4}, \dfrac34, {3 \over 4}, mixed: 1 1/2, 1½, 1\frac{1}{2} |
| percent   | 50%, 50\%, 50 percent, \boxed{50}\%: equal to 50 and to 0.5                            |
| scale     | 5 million, 5 hundred thousand: equal to 5 and to 5000000 or 500000 (hundred, thousand, |
|           | million, billion, trillion), also in \text{} and behind a box                          |
| units     | $5, 5€, 5 km, 12m, 30°C, 5 m^2: the unit is ignored, and so is a variable, as in 2x     |

**Not read.** Roots, π, e^2, logarithms, sines and binomials, powers other than of a number to a whole
number ((1/2)^2, 2^n), a fraction with anything but numbers, a division by zero, versions and dates with
dots or slashes (1.2.3, 3/4/2024), more than 400 digits, powers beyond 10^±400 or of more than 4000 digits.
Digits after a Latin or Greek letter (H2O, x1, v2), in an index or in the exponent of a unit are no numbers,
nor are NaN, infinity, number words and suffixes such as 5k.

**Which numbers are equal.** Those that differ by at most tolerance x |value|. A value of 0 has no share, so
there the tolerance is absolute. A tiny value such as 6.6e-34 is not met by 0.
"""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction

MAX_DIGITS = 400
"""Limit on digits and on powers of ten, above those of any value. Longer numbers are never computed."""

_BRACED = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_ARGUMENT = rf"(?:{_BRACED}|\d)"
_EXPONENT = r"""(?:
    (?:\^\s?|\*\*|(?<=\s)\*\*\s)(?:\{\s?[-+]?\d+\s?\}|\(\s?[-+]?\d+\s?\)|[-+]?\d+(?!\.?\d|/\d))
  | [⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+
)"""
_RAISED_TO = rf"""(?:\^|\*\*(?=[\w(\{{.]))\s?
    (?:{_BRACED}|\([^()]*\)|\\[A-Za-z]+\s?(?:{_ARGUMENT}){{0,2}}|[-+]?[\w.]+)?"""
_LETTERS = "A-Za-zÀ-ÖØ-öø-ɏΑ-ΟΡ-Ωα-ορ-ω"  # without π
_BLANK = r"(?:[^\S\n]|\n(?!\n)|~|\\[,;:!\ ])"
_FUNCTION = r"(?:ln|log|lg|exp|(?:arc)?(?:sin|cos|tan|cot)h?|sec|csc)"
_OVERLINED = r"\\(?:overline|bar|dot)\s?(?:\{\s?\d+\s?\}|\d)"
_DECIMAL = rf"""
    (?P<repeating>
        (?:\d+|(?<![^\W_])(?<!\.))\.\d*{_OVERLINED}(?!\d*\\dot)             # 0.1\overline{{6}}
      | \d+[.,]\d*\(\d+\)(?![\d(])                                          # 0.1(6)
    )
  | (?P<european>
        (?<!\d)(?<!\d\.)\d{{1,3}}(?:\.\d{{3}})+,\d+(?![.,]?\d)              # 1.234,5
      | (?<!\d)(?<!\d\.)[1-9]\d{{0,2}}(?:\.\d{{3}}){{2,}}(?![.,]?\d)        # 1.234.567
    )
  | (?P<gapped>
        [1-9]\d{{0,2}}(?P<gap>[ \u00a0\u2009\u202f_'’‘´ʼ~]|\\[,;:\ ]|,\\!)
        \d{{3}}(?:(?P=gap)\d{{3}})*(?:[.,]\d+)?(?!\d)                       # 1 234 567
    )
  | (?P<american>
        (?<!\d)(?<!\d,)(?<!\d\{{,\}})(?:
            [1-9]\d{{0,2}}(?:(?:,|\{{,\}})\d{{3}})+(?:\.\d+)?(?!\d|(?:,|\{{,\}})\d)  # 1,234,567.89
          | [1-9]\d?(?:,\d{{2}})+,\d{{3}}(?:\.\d+)?(?!,?\d)                 # 12,34,567
        )
    )
  | (?P<comma>
        (?!(?:(?<=[(\[{{])|(?<=[(\[{{]-))\d+,\d+[)\]}}])                    # but not in (3,5)
        (?<!\d,)(?<!\d\{{,\}})\d+(?:,|\{{,\}})\d+(?![.,]?\d)                # 3,5
    )
  | (?P<plain> \d+\.\d+ | \d+ | (?<![^\W_])(?<!\.)\.\d+ )
"""
_SKIPPED = rf"""
    \^\s?(?:{_BRACED}|\([^()]*\)|[-+]?\w+)                                  # a unit's exponent
  | (?:(?<=[^\W_])|(?<=[)}}\]]))_(?:\s?{_BRACED}|\([^()]*\)|[-+]?\w+)        # an index
  | \([{_LETTERS}/·\s]{{1,30}}\)\s?\^\s?(?:{_BRACED}|[-+]?\d+)              # (m/s)^2
  | (?!\\(?:[dtc]?frac|[dt]?binom|sqrt|pi|over|{_FUNCTION})(?![A-Za-z])|{_OVERLINED})
    \\[A-Za-z]+                                                             # a command of LaTeX
  | (?!(?:sqrt\s?\(|pi\s?[/*]|(?-i:e)\s?\^|{_FUNCTION}\(|ln\s\d|(?:USD|EUR|GBP|CHF|INR|Rs)\d))
    [{_LETTERS}]+(?:\d\w*(?:\.\d+)*)?                                       # a word, H2O, v1.2
"""
_UNREAD = rf"""
    (?!(?<!\d\.)\d{{1,3}}(?:\.\d{{3}}){{2,}}(?!\.?\d)) \d+(?:\.\d+){{2,}}   # 1.2.3
  | \d+(?:/\d+){{2,}}                                                       # 3/4/2024
  | [)\]]\s?{_RAISED_TO}                                                    # (1/2)^2
  | (?: \\sqrt\s?(?:\[[^\]]{{0,40}}\])?\s?(?:{_ARGUMENT}|\w) | √\s?(?:\([^()]*\)|[\d.]+) | sqrt\s?\([^()]*\)
      | π | \\pi(?![A-Za-z]) | (?<=\d)\s?pi\b | pi(?=\s?[/*]) | (?-i:e)\s?{_RAISED_TO} | {_OVERLINED}
      | \\over(?![A-Za-z])\s?(?:{_ARGUMENT}|[-+]?[\d.]+)? | \\[dt]?binom\s?{_ARGUMENT}\s?{_ARGUMENT}
      | \\{_FUNCTION}(?![A-Za-z])\s?(?:_\s?{_ARGUMENT}\s?)?(?:\^\s?{_ARGUMENT}\s?)?
        (?:\{{[^{{}}]*\}}|\([^()]*\)|[-+]?\d[\d.]*)
      | {_FUNCTION}\([^()]*\) | ln\s\d[\d.]*
    )(?:\s?[/*]\s?\d+)?
"""
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = rf"(?:{'|'.join(_SCALES)})s?\b"
_PERCENT = r"(?:\\?%|per\s?cent\b)"
_NUMBER = rf"""
    (?P<sign> (?<![^\W_])(?<![)\]}}%.+-])[-+] | (?<=[=≈(])\s?[-+]\s? )?
    (?:\\?[$€£¥]\s?|USD|EUR|GBP|CHF|INR|Rs\.?)?(?P<inner>(?<=[$€£¥])-)?
    (?:
        (?P<whole>\d+)?\s?\\[dtc]?frac\s?(?P<above>{_ARGUMENT})\s?(?P<below>{_ARGUMENT})
      | (?P<ones>\d+)?\s?(?P<vulgar>[¼½¾⅐-⅞])
      | (?:(?P<mixed>\d+)[ \u00a0\u2009\u202f](?=\d+[/⁄]\d))?
        (?:{_DECIMAL})
        (?: [eE](?P<e>[-+]?\d+)(?![^\W_])
          | \s?(?:×|[xX]|\*|·|⋅|\\times|\\cdot)\s?10\s?(?P<ten>{_EXPONENT})
          | \s?(?P<power>{_EXPONENT})
          | \s?(?:[/⁄]|(?P<over>\\over(?![A-Za-z])))\s?
            (?P<under>[-+]?\d+(?:\.\d+)?|\([-+]?\d+(?:\.\d+)?\))(?!\d|/|\.\d)
        )?
    )
    (?P<beyond>\s?{_RAISED_TO})?
    (?P<percent>{_BLANK}{{0,4}}{_PERCENT})?
    (?P<scale>(?:{_BLANK}{{0,4}}{_SCALE}){{1,3}})?
"""
_TOKEN = re.compile(
    rf"(?P<skipped>{_SKIPPED})|(?P<unread>{_UNREAD})|(?P<number>{_NUMBER})", re.VERBOSE | re.IGNORECASE
)
_BRACE = re.compile(r"\\(?:boxed|fbox)\s?\{|\\[{}]|[{}]")
_MINUS_BEFORE = re.compile(  # spaced only where neither a dash between words nor a bullet can be meant
    r"""(?:^|[=≈$(\[{:])[ \t]*-(?:[^\S\n]|[~$]|\\[,;:!\ ])*$
    | (?<![^\W_])(?<![)\]}%.+-])-(?:[$~\u2009\u202f]|\\[,;:!])*$""",
    re.VERBOSE,
)
_UNIT_BEHIND = re.compile(
    rf"[$*]{{0,2}}(?:\\[)\]])?({_BLANK}{{0,4}}(?:{_PERCENT}|{_SCALE}(?:\s{_SCALE})?))", re.I
)
_LEADING_SIGN = re.compile(rf"(?:{_BLANK}|\$)*([-+])(?:{_BLANK})*(?=\S)")
_RELATION = re.compile(
    r"(?<![!<>])(?<!\\not)[=≈≃≅⇒→]|\\(?:approx|simeq|sim|cong|equiv|Rightarrow|implies|to|rightarrow)(?![A-Za-z])"
)
_HARMLESS = re.compile(
    r"""text\w*|math(?:rm|bf|it|sf|tt|cal|bb|normal)|[mh]box|f?boxed|fbox|operatorname|boldsymbol|bm|bf|rm|it|emph
    |underline|unit|SI|si|qty|num|color|q?quad|hspace|thinspace|(?:display|text)style|large|Large|mathstrut
    |pounds|euro|yen|cents?|l?dots|cdot|times|prime|deg|ell|AA|ohm|celsius|percent|per|therefore|left|right
    |alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau
    |upsilon|(?:var)?phi|chi|psi|omega|Delta|Gamma|Lambda|Omega|Phi|Psi|Sigma|Theta|Xi""",
    re.VERBOSE,
)
_EXPRESSION = re.compile(
    rf"""[+±∓|<>≤≥≠÷!∑∏∫]                              # \0 stands for a number
    | -(?!(?<=[A-Za-z\0]-)[A-Za-z]{{2}})               # but 10-digit
    | [*·×⋅/][\s(\[{{$]*\0 | \0[\s)\]}}$]*(?:[*·×⋅^]|/(?!\s*(?:[A-Za-zµμΩ]{{2}}|[smhLgKd](?![A-Za-z(]))))
    | \0\s*(?::|x|X|mod)\s*\0 | \0[\s)\]}}]*[(\[{{]\s*\0 | [A-Za-z]\(\s*\0
    | \0\s*[ei](?![A-Za-z]) | (?<![A-Za-z]){_FUNCTION}[_\s({{]*\0""",
    re.VERBOSE,
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_MINUS = str.maketrans(dict.fromkeys("−–‒‐‑﹣－", "-"))
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_WIDE: dict[int, int | str] = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) != "，"}
_ARABIC: dict[int, int | str] = {0x066B: ".", 0x066C: ",", 0x066A: "%"}
_WORDING = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|[mh]box|operatorname|boldsymbol|bm|emph)"
    r"\s?\{([^{}]*)\}(\d?)"
)
_REPLACED = (
    (re.compile(r"(?<=\d)[，،](?=\d{3}(?!\d))"), ","),  # elsewhere these commas part sentences and lists
    (re.compile(r"\^\s?(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))"), "°"),
    (re.compile(r"\^\s?(?:\{\s*(st|[nr]d|th)\s*\}|(st|[nr]d|th)\b)"), r"\1\2"),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s?"), ""),
    (re.compile(r"(?<=\d) ?(\\[,;:]) ?(?=\d{3}(?!\d))"), r"\1"),
    # Markdown's italics; no underscores of LaTeX
    (re.compile(r"(?<![\w)}\]\\])(_{1,3})(?=[^\s_])([^_\n]{1,300})(?<=\S)\1(?![\w{])"), r"\2"),
    (re.compile(r"(?<=\d)([ \u00a0\u2009\u202f])(?:\1|\1+(?=0))(?=\d{3}(?!\d))"), r"\1"),
    (
        re.compile(
            r"(?<![\d)}\]%]\s)(?<![^\W_])(?<![)\]}%,;:!\u2009\u202f+-])-(?:\\[,;:!]|[\u2009\u202f])+(?=[\d.$\\])"
        ),
        "-",
    ),
)


class _NotReadError(Exception):
    """The writing is no number that this module computes."""


def gives_number(answer: str, value: float, tolerance: float) -> bool:
    """Whether the answer's number differs from the value by at most tolerance x |value|.

    Of a value of 0 there is no share: then the number itself may be up to the tolerance.
    """
    expected = Fraction(str(value))  # 0.1 is meant as written, not as the nearest double
    margin = Fraction(str(tolerance)) * (abs(expected) or 1)
    return any(abs(number - expected) <= margin for number in readings(answer))


def readings(answer: str) -> tuple[Fraction, ...]:
    """Returns what the answer's number can mean: usually one value, two for 50% and 5 million, or none."""
    text = _plain(answer)
    box = _last_box(text)
    if box is not None:
        return _boxed(box)
    for line in reversed(text.split("\n")):
        rest = line.strip().removeprefix("####").strip().rstrip(".")
        if line.lstrip().startswith("####") and (whole := _TOKEN.fullmatch(rest)) and whole["number"]:
            return _values(whole)
    return _last(text)


def _plain(answer: str) -> str:
    """One writing of minus, digits, separators and degrees; without what only shapes text."""
    text = answer.translate(_MINUS)
    if not text.isascii():
        text = "".join(
            str(unicodedata.decimal(char)) if not char.isascii() and char.isdecimal() else char
            for char in text.translate(_WIDE | _ARABIC)
        )
    for _ in range(2):  # one may be in another
        text = _WORDING.sub(_unwrapped, text)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    return text


def _unwrapped(wording: re.Match[str]) -> str:
    r"""The words of \text{...}, kept apart from a word before and a digit behind."""
    before = " " if wording.string[wording.start() - 1 : wording.start()].isalpha() else ""
    return before + wording[1] + (f" {wording[2]}" if wording[2] else "")


def _last_box(text: str) -> str | None:
    r"""The content of the \boxed{} that closes last, with a minus before and a percent or scale behind it."""
    opened: list[
        tuple[int, int] | None
    ] = []  # (start, start of the content) of each box; None of other braces
    found: str | None = None
    for brace in _BRACE.finditer(text):
        if brace[0][-1] == "}" and brace[0] != r"\}":
            box = opened.pop() if opened else None
            if box is not None:
                minus = "-" if _MINUS_BEFORE.search(text, max(0, box[0] - 20), box[0]) else ""
                unit = _UNIT_BEHIND.match(text, brace.end())
                found = minus + text[box[1] : brace.start()] + (unit[1] if unit else "")
        elif brace[0] not in (r"\{", r"\}"):
            opened.append((brace.start(), brace.end()) if brace[0] != "{" else None)
    return found


def _boxed(content: str) -> tuple[Fraction, ...]:
    r"""The number of a box, in what follows the last = or \approx. None for a part of an expression."""
    for side in reversed(_RELATION.split(content)):
        side = side.strip("* \t\n")
        if sign := _LEADING_SIGN.match(side):
            side = sign[1] + side[sign.end() :]
        rest, end = [], 0  # the side, with \0 for each number
        last: tuple[Fraction, ...] | None = None
        for token in _TOKEN.finditer(side):
            last = _values(token) if token["number"] else () if token["unread"] else last
            if last == ():
                return ()
            rest += [side[end : token.start()], _outline(token)]
            end = token.end()
        outline = re.sub(r"\\[,;:!]", " ", "".join([*rest, side[end:]]))
        known = all(_HARMLESS.fullmatch(command[1]) for command in _COMMAND.finditer(outline))
        if not known or _EXPRESSION.search(outline) or outline.count("{") != outline.count("}"):
            return ()
        if last is not None:
            return last
    return ()


def _outline(token: re.Match[str]) -> str:
    if token["number"]:
        return "\0"
    if token[0] in (r"\cdot", r"\times"):
        return "×"
    return token[0][0] if token[0][0] in "^_" else token[0]


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
    if token["beyond"]:
        return ()
    if "-" in (token["sign"] or "") or token["inner"]:
        number = -number
    if token["percent"]:
        return number, number / 100
    if token["scale"]:
        words = re.findall("|".join(_SCALES), token["scale"].lower())
        return number, number * 10 ** sum(_SCALES[word] for word in words)
    return (number,)


def _magnitude(token: re.Match[str]) -> Fraction:
    if token["above"]:
        return _mixed(token["whole"], _argument(token["above"]) / _argument(token["below"]))
    if token["vulgar"]:
        part = Fraction(unicodedata.numeric(token["vulgar"])).limit_denominator(10)
        return _mixed(token["ones"], part)
    number = _decimal(token)
    if token["under"]:
        if token["over"] and token.string[: token.start()].rstrip()[-1:] not in ("", "{"):
            raise _NotReadError  # the numerator has more than this number
        return _mixed(token["mixed"], number / _digits(token["under"].strip("()+")))
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
    if token["repeating"]:
        return _repeating(*re.findall(r"\d*[.,]\d*|\d+", token["repeating"]))
    if token["european"]:
        return _digits(token["european"].replace(".", "").replace(",", "."))
    if token["gapped"]:
        return _digits(token["gapped"].replace(token["gap"], "").replace(",", "."))
    if token["american"]:
        return _digits(re.sub(r"\{,\}|,", "", token["american"]))
    if token["comma"]:
        return _digits(re.sub(r"\{,\}|,", ".", token["comma"]))
    return _digits(token["plain"])


def _repeating(start: str, period: str) -> Fraction:
    """0.1 and 6 are 0.1666..."""
    start = start.replace(",", ".")
    if len(start) + len(period) > MAX_DIGITS:
        raise _NotReadError
    places = len(start.partition(".")[2])
    return _digits(start) + Fraction(int(period), (10 ** len(period) - 1) * 10**places)


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
    above, below = math.log10(base.numerator or 1), math.log10(base.denominator)
    if abs(times * (above - below)) > MAX_DIGITS or abs(times) * max(above, below) > 10 * MAX_DIGITS:
        raise _NotReadError
    return base**times
