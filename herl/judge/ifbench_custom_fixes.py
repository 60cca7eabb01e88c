"""Mended checks of the IFBench prompts that stand alone (custom:*) and of those to repeat (repeat:*).

Like `ifbench_fixes`: each function says what is wrong in the package `if-verifiable`.
"""

from __future__ import annotations

import csv
import io
import re
import string
import unicodedata
from collections.abc import Mapping
from datetime import date
from itertools import pairwise

from herl.judge.ifbench_fixes import sentences_of
from herl.judge.ifeval_fixes import Check
from herl.judge.words import words

_CAPITALS = words(
    "Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin "
    "Amsterdam Warsaw London Brussels Kyiv Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz "
    "Chisinau Bern Ljubljana Zagreb"
)


def _questions(answer: str) -> bool:
    """Upstream: a question without a number, and options such as (a), are not seen."""
    lines = [line.strip().strip("*#").strip() for line in answer.strip().splitlines()]
    if not lines or not lines[0].startswith("Question"):
        return False
    lengths, options = [], []
    for line in lines:
        if line.startswith("Question"):
            lengths.append(len(re.sub(r"^Question\W*\d*[.:);]?", "", line).strip()))
            options.append(0)
        elif re.match(r"\(?[A-Ea-e][.):]\s*\S", line):
            options[-1] += 1
        elif not options[-1]:
            lengths[-1] += len(line)
    return options == [5] * 4 and all(one < next_ for one, next_ in pairwise(lengths))


def _countries(answer: str) -> bool:
    """Upstream: one country may be named many times."""
    ascii_ = unicodedata.normalize("NFKD", answer).encode("ascii", "ignore").decode()
    lines = [
        re.sub(r"^\W*(?:\d+[.)])?\s*", "", line).strip(string.punctuation + " ")
        for line in ascii_.splitlines()
    ]
    named = [line for line in lines if line]
    start = next((place for place, line in enumerate(named) if "Zimbabwe" in line), len(named))
    return len(set(named[start:])) >= 52 and all(one > next_ for one, next_ in pairwise(named[start:]))


def _sentence_alphabet(answer: str) -> bool:
    """Upstream: a quotation mark at the beginning of a sentence counts as its first letter."""
    firsts = "".join(words(sentence)[0][0].lower() for sentence in sentences_of(answer))
    return firsts == string.ascii_lowercase


def _capitals(answer: str) -> bool:
    """Upstream: its list lacks Kyiv (50.45 degrees), so the right answer fails. Both lists pass here."""
    ascii_ = unicodedata.normalize("NFKD", answer).encode("ascii", "ignore").decode()
    found = [city.strip().removesuffix(".") for city in ascii_.split(",") if city.strip()]
    found = ["Kyiv" if city in ("Kiev", "Kyiv") else city for city in found]
    return found in (_CAPITALS, [city for city in _CAPITALS if city != "Kyiv"])


def _table(answer: str, delimiter: str) -> list[list[str]]:
    """Returns the rows of a table, with the quotation marks around its fields."""
    marked = io.StringIO(answer.strip().replace('"', '"""'))
    rows = csv.reader(marked, delimiter=delimiter, skipinitialspace=True)
    return [[field.strip() for field in row] for row in rows if row]


def _has_columns(table: list[list[str]], names: str, rows: int) -> bool:
    header = [field.strip('"') for field in table[0]] if table else []
    return header == names.split() and len(table) == rows + 1 and all(len(row) == 5 for row in table)


def _csv_city(answer: str) -> bool:
    """Upstream: an empty line at the end, and blanks behind the commas, fail."""
    return _has_columns(_table(answer, ","), "ID Country City Year Count", 7)


def _csv_special(answer: str) -> bool:
    """Upstream: the rows behind the first special character may have any number of columns."""
    table = _table(answer, ",")
    fields = [field for row in table[1:] for field in row if len(field) > 2 and field[0] == field[-1] == '"']
    special = any(not (c.isalnum() or c.isspace()) for field in fields for c in field[1:-1])
    return special and _has_columns(table, "ProductID Category Brand Price Stock", 14)


def _csv_quotes(answer: str) -> bool:
    """Upstream: an empty line at the end fails, and an empty field raises an error."""
    table = _table(answer, "\t")
    quoted = all(len(field) > 1 and field[0] == field[-1] == '"' for row in table for field in row)
    return quoted and _has_columns(table, "StudentID Subject Grade Semester Score", 3)


def _dates(answer: str) -> bool:
    """Upstream: the month 00, the day 00 and the 29th of every February pass."""
    for text in answer.split(","):
        if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text.strip()):
            return False
        try:
            day = date.fromisoformat(text.strip())
        except ValueError:
            return False
        if not 1769 <= day.year <= 1821:  # Napoleon's life
            return False
    return True


def _repeat_change(answer: str, *, prompt_to_repeat: str) -> bool:
    """Upstream: the same request with another blank or line break passes."""
    mine, theirs = answer.split(), prompt_to_repeat.split()
    return len(mine) == len(theirs) and mine[1:] == theirs[1:] and mine[0].casefold() != theirs[0].casefold()


def _repeat_span(answer: str, *, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """Upstream: the last word is left out, though the request includes it, and word 0 counts as missing."""
    return answer.lower().split() == prompt_to_repeat.lower().split()[n_start : n_end + 1]


FIXES: Mapping[str, Check] = {
    "custom:mcq_count_length": _questions,
    "custom:reverse_newline": _countries,
    "custom:sentence_alphabet": _sentence_alphabet,
    "custom:european_capitals_sort": _capitals,
    "custom:csv_city": _csv_city,
    "custom:csv_special_character": _csv_special,
    "custom:csv_quotes": _csv_quotes,
    "custom:date_format_list": _dates,
    "repeat:repeat_change": _repeat_change,
    "repeat:repeat_span": _repeat_span,
}
"""Instruction id -> the check in place of the package's."""
