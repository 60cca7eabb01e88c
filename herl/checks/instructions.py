"""The arguments that each verifiable instruction of IFEval and IFBench needs, as a table.

Names are the public data's. The checkers of the package `if-verifiable` draw an argument at random where it
is missing, null or out of range, so such a row must be found before they see it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from herl.errors import did_you_mean


@dataclass(frozen=True, slots=True)
class Argument:
    """What an argument may be."""

    expected: str
    """In words, for messages."""
    fits: Callable[[Any], bool]


def whole(value: Any) -> Any:
    """Turns 5.0 into 5: tables store whole numbers as floats in columns with missing values."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_whole(value: Any, least: int) -> bool:
    number = whole(value)
    return isinstance(number, int) and not isinstance(number, bool) and number >= least


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


LANGUAGES = frozenset(
    re.findall(
        r"\S+",
        "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr "
        "ne nl no pa pl pt ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh zh-cn zh-tw",
    )
)
"""Codes that `langdetect` returns; "zh" is either Chinese."""
RELATIONS = ("at least", "less than")

COUNT = Argument("a whole number of at least 0", lambda value: _is_whole(value, 0))
PLACE = Argument("a whole number of at least 1", lambda value: _is_whole(value, 1))
PERCENTAGE = Argument("a number from 0 to 100", lambda value: _is_number(value) and 0 <= value <= 100)
TEXT = Argument("a text that is not blank", _is_text)
TEXTS = Argument(
    "a list of texts that are not blank",
    lambda value: isinstance(value, list | tuple) and bool(value) and all(map(_is_text, value)),
)
CHARACTER = Argument("one character", lambda value: _is_text(value) and len(value) == 1)
RELATION = Argument(f"one of {', '.join(RELATIONS)}", lambda value: value in RELATIONS)
LANGUAGE = Argument(
    "a language code such as en, de or zh-cn", lambda value: isinstance(value, str) and value in LANGUAGES
)

ARGUMENTS: Mapping[str, Mapping[str, Argument]] = {
    # IFEval (arXiv:2311.07911)
    "keywords:existence": {"keywords": TEXTS},
    "keywords:frequency": {"keyword": TEXT, "frequency": COUNT, "relation": RELATION},
    "keywords:forbidden_words": {"forbidden_words": TEXTS},
    "keywords:letter_frequency": {"letter": CHARACTER, "let_frequency": COUNT, "let_relation": RELATION},
    "language:response_language": {"language": LANGUAGE},
    "length_constraints:number_sentences": {"num_sentences": COUNT, "relation": RELATION},
    "length_constraints:number_paragraphs": {"num_paragraphs": COUNT},
    "length_constraints:number_words": {"num_words": COUNT, "relation": RELATION},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": PLACE,
        "nth_paragraph": PLACE,
        "first_word": TEXT,
    },
    "detectable_content:number_placeholders": {"num_placeholders": COUNT},
    "detectable_content:postscript": {"postscript_marker": TEXT},
    "detectable_format:number_bullet_lists": {"num_bullets": COUNT},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": COUNT},
    "detectable_format:multiple_sections": {"section_spliter": TEXT, "num_sections": COUNT},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": TEXT},
    "startend:end_checker": {"end_phrase": TEXT},
    "startend:quotation": {},
    "change_case:capital_word_frequency": {"capital_frequency": COUNT, "capital_relation": RELATION},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
    # IFBench (arXiv:2507.02833)
    "count:word_count_range": {"min_words": COUNT, "max_words": COUNT},
    "count:unique_word_count": {"N": COUNT},
    "count:conjunctions": {"small_n": COUNT},
    "count:person_names": {"N": COUNT},
    "count:numbers": {"N": COUNT},
    "count:punctuation": {},
    "count:words_japanese": {"N": PLACE},
    "count:pronouns": {"N": COUNT},
    "count:keywords_multiple": dict.fromkeys((f"keyword{n}" for n in range(1, 6)), TEXT),
    "ratio:stop_words": {"percentage": PERCENTAGE},
    "ratio:sentence_type": {},
    "ratio:sentence_balance": {},
    "ratio:overlap": {"reference_text": TEXT, "percentage": PERCENTAGE},
    "ratio:sentence_words": {},
    "words:alphabet": {},
    "words:vowel": {},
    "words:consonants": {},
    "words:palindrome": {},
    "words:prime_lengths": {},
    "words:start_verb": {},
    "words:repeats": {"small_n": COUNT},
    "words:odd_even_syllables": {},
    "words:last_first": {},
    "words:paragraph_last_first": {},
    "words:no_consecutive": {},
    "words:keywords_specific_position": {"keyword": TEXT, "n": PLACE, "m": PLACE},
    "words:words_position": {"keyword": TEXT},
    "sentence:alliteration_increment": {},
    "sentence:keyword": {"word": TEXT, "N": PLACE},
    "sentence:increment": {"small_n": COUNT},
    "format:parentheses": {},
    "format:quotes": {},
    "format:options": {"options": TEXT},
    "format:newline": {},
    "format:emoji": {},
    "format:line_indent": {},
    "format:quote_unquote": {},
    "format:list": {"sep": TEXT},
    "format:thesis": {},
    "format:sub-bullets": {},
    "format:no_bullets_bullets": {},
    "format:title_case": {},
    "format:output_template": {},
    "format:no_whitespace": {},
    "custom:multiples": {},
    "custom:mcq_count_length": {},
    "custom:reverse_newline": {},
    "custom:word_reverse": {},
    "custom:character_reverse": {},
    "custom:sentence_alphabet": {},
    "custom:european_capitals_sort": {},
    "custom:csv_city": {},
    "custom:csv_special_character": {},
    "custom:csv_quotes": {},
    "custom:date_format_list": {},
    "repeat:repeat_change": {"prompt_to_repeat": TEXT},
    "repeat:repeat_simple": {},
    "repeat:repeat_span": {"prompt_to_repeat": TEXT, "n_start": COUNT, "n_end": COUNT},
}
"""Instruction id -> its arguments, all of which are required. Those with {} need none."""


def argument_fault(instruction_id: object, arguments: object) -> str | None:
    """Returns what is wrong with an instruction as it stands in the data, or None if it can be checked.

    An argument that is null counts as missing, whatever its name: tables fill up the arguments of all
    instructions with nulls. Any other argument that the instruction does not take is a fault.
    """
    if not isinstance(instruction_id, str) or instruction_id not in ARGUMENTS:
        hint = did_you_mean(str(instruction_id), ARGUMENTS)
        return f"instruction_id: expected an instruction of IFEval or IFBench, got {instruction_id!r}.{hint}"
    if not isinstance(arguments, Mapping):
        return f"kwargs: expected a mapping of arguments, got {arguments!r}"[:200]
    given = {str(name): value for name, value in arguments.items() if value is not None}
    wanted = ARGUMENTS[instruction_id]
    for name in given:
        if name not in wanted:
            takes = f"only {', '.join(wanted)}" if wanted else "no arguments"
            return f"kwargs.{name}: '{instruction_id}' takes {takes}.{did_you_mean(name, wanted)}"
    for name, argument in wanted.items():
        if name not in given:
            return f"kwargs.{name}: '{instruction_id}' needs {argument.expected}, got nothing"
        if not argument.fits(given[name]):
            got = repr(given[name])[:80]
            return f"kwargs.{name}: '{instruction_id}' needs {argument.expected}, got {got}"
    return _contradiction(instruction_id, given)


def _contradiction(instruction_id: str, given: Mapping[str, Any]) -> str | None:
    """Two arguments that fit alone, but that no answer could fit together."""
    if instruction_id == "count:word_count_range" and given["max_words"] < given["min_words"]:
        return f"kwargs.max_words: expected at least min_words={given['min_words']}, got {given['max_words']}"
    if instruction_id == "length_constraints:nth_paragraph_first_word":
        place, count = given["nth_paragraph"], given["num_paragraphs"]
        return f"kwargs.nth_paragraph: expected at most {count}, got {place}" if place > count else None
    if instruction_id == "repeat:repeat_span":
        words, first, last = len(given["prompt_to_repeat"].split()), given["n_start"], given["n_end"]
        if first >= words:
            return f"kwargs.n_start: expected the index of one of {words} words, from 0, got {first}"
        return f"kwargs.n_end: expected at least n_start={first}, got {last}" if last < first else None
    return None
