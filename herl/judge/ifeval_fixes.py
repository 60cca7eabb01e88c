"""IFEval's checks that the package `if-verifiable` gets wrong. Each function says what is wrong there.

A check takes the answer and the arguments from the data, keeps no state, and returns whether the answer
follows the instruction. `herl.checks.instructions` has checked the arguments.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence

from herl.judge.words import compared, occurrences, straight, words

Check = Callable[..., bool]
_HIGHLIGHT = re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*\n]*[^\s*])\1(?![\w*])")
_CAPITALS = re.compile(r"[^\W_]+(?:['’.\-][^\W_]+)*")
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_detecting = threading.Lock()  # langdetect loads its profiles on first use, without a lock


def _keywords(answer: str, *, keywords: Sequence[str]) -> bool:
    """Upstream: a keyword is a regular expression, and matches inside other words."""
    return all(occurrences(keyword, answer) for keyword in keywords)


def _frequency(answer: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """Upstream: the keyword is a regular expression, and is counted inside other words."""
    return compared(occurrences(keyword, answer), relation, frequency)


def _forbidden(answer: str, *, forbidden_words: Sequence[str]) -> bool:
    r"""Upstream: a word is a regular expression, and \b fails beside signs, as in "c++"."""
    return not any(occurrences(word, answer) for word in forbidden_words)


def _letters(answer: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Upstream: it draws a random letter for others than a-z, such as the "#" of the public data."""
    return compared(answer.lower().count(letter.lower()), let_relation, let_frequency)


def detected(text: str) -> str:
    """Returns the code of the language that `langdetect` recognizes, or "" for a text without letters."""
    import langdetect

    with _detecting:
        try:
            return str(langdetect.detect(text))
        except langdetect.LangDetectException:
            return ""


def _language(answer: str, *, language: str) -> bool:
    """Upstream: an answer whose language cannot be told, such as "123", passes; "zh" is unknown."""
    found = detected(answer)
    return found == language or (language == "zh" and found.startswith("zh-"))


def _sentence_count(answer: str, *, num_sentences: int, relation: str) -> bool:
    """Upstream: sentences end only with Latin signs."""
    from if_verifiable.ifeval.instructions_util import count_sentences

    return compared(count_sentences(re.sub("[。！？]+", ". ", answer).strip()), relation, num_sentences)


def _word_count(answer: str, *, num_words: int, relation: str) -> bool:
    """Upstream: don't and well-known are two words each."""
    return compared(len(words(answer)), relation, num_words)


def _first_word(answer: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Upstream: empty paragraphs are not counted, but shift the numbers of those behind them."""
    paragraphs = [paragraph for paragraph in re.split(r"\n[^\S\n]*\n", answer) if paragraph.strip()]
    if len(paragraphs) != num_paragraphs:
        return False
    [*start] = words(paragraphs[nth_paragraph - 1])[:1]
    wanted = " ".join(words(first_word)).casefold()
    # upstream cuts a word at its apostrophe, so both forms count
    return bool(start) and wanted in (start[0].casefold(), start[0].casefold().split("'")[0])


def _placeholders(answer: str, *, num_placeholders: int) -> bool:
    """Upstream: empty brackets count."""
    found = re.findall(r"\[([^\[\]\n]*)\]", answer)
    return sum(1 for inner in found if inner.strip()) >= num_placeholders


def _postscript(answer: str, *, postscript_marker: str) -> bool:
    """Upstream: markers but P.S. and P.P.S are regular expressions; long blanks take quadratic time."""
    marker = straight(postscript_marker).strip()
    if marker.lower().rstrip(".") in ("p.s", "p.p.s"):
        dots = marker.lower().rstrip(".").split(".")
        pattern = r"\.\s?".join(dots) + (r"\." if marker.endswith(".") else "")
    else:
        pattern = re.escape(marker)
    before = r"(?<!\w)(?<!p\.)(?<!p\.\s)"  # the end of P.P.S. is not a P.S.
    return re.search(before + pattern, straight(answer), flags=re.IGNORECASE) is not None


def bullet(line: str, marks: str = "*-") -> bool:
    """Returns whether a line is a Markdown bullet point: no rule, no emphasis, no negative number."""
    text = line.strip()
    mark, rest = text[:1], text[1:]
    if not mark or mark not in marks or not rest.strip("*- \t") or rest[0] in "*-":
        return False
    return rest[0].isspace() or ("*" not in rest if mark == "*" else not rest[0].isdigit())


def _bullets(answer: str, *, num_bullets: int) -> bool:
    """Upstream: a rule (---), a line that begins with *emphasis*, and a negative number count as bullets."""
    return sum(map(bullet, answer.splitlines())) == num_bullets


def _constrained(answer: str) -> bool:
    """Upstream: an answer that gives several of the options passes."""
    return sum(option in answer for option in _CONSTRAINED) == 1


def _highlights(answer: str, *, num_highlights: int) -> bool:
    """Upstream: ***one*** counts twice, and the products in 2 * 3 * 4 count."""
    return len(_HIGHLIGHT.findall(answer)) >= num_highlights


def _sections(answer: str, *, section_spliter: str, num_sections: int) -> bool:
    """Upstream: the mark is a regular expression, is found inside words, and one number counts many times."""
    mark = rf"(?<!\w){re.escape(section_spliter.strip())}\s?(\d+)"
    return len(set(re.findall(mark, answer))) >= num_sections


def _json(answer: str) -> bool:
    """Upstream: NaN and Infinity count as JSON."""
    text = answer.strip()
    if fenced := re.fullmatch(r"```(?:json)?(.*?)(?:```)?", text, flags=re.DOTALL | re.IGNORECASE):
        text = fenced[1]
    try:
        json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _title(answer: str) -> bool:
    """Upstream: a long row of "<" takes quadratic time."""
    return any(title.strip("<> \t") for title in re.findall(r"<<([^<\n]+)>>", answer))


def _repeat_then_answer(answer: str, *, prompt_to_repeat: str) -> bool:
    """Upstream: the request alone passes, without the answer that should follow."""
    text, request = answer.strip().lower(), prompt_to_repeat.strip().lower()
    return text.startswith(request) and bool(words(text[len(request) :]))


def _end(answer: str, *, end_phrase: str) -> bool:
    """Upstream: a phrase that ends with a quotation mark never matches, since the answer's is stripped."""
    text, phrase = straight(answer).strip().lower(), straight(end_phrase).strip().lower()
    return text.endswith(phrase) or text.strip('"').strip().endswith(phrase)


def _capital_words(answer: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """Upstream: a contraction such as DON'T counts twice."""
    found = sum(1 for word in _CAPITALS.findall(answer) if word.isupper())
    return compared(found, capital_relation, capital_frequency)


def _english_capital(answer: str) -> bool:
    """Upstream: the language of capital letters is often mistaken, and one that cannot be told passes."""
    return answer.isupper() and detected(answer.lower()) == "en"


def _english_lowercase(answer: str) -> bool:
    """Upstream: a text whose language cannot be told passes."""
    return answer.islower() and detected(answer) == "en"


def _no_comma(answer: str) -> bool:
    """Upstream: only the Latin comma counts."""
    return not any(comma in answer for comma in ",，،、")


def _quotation(answer: str) -> bool:
    """Upstream: typographic double quotation marks fail, and quotation marks around nothing pass."""
    text = re.sub("[“”„]", '"', answer.strip())
    return len(text) > 2 and text[0] == text[-1] == '"' and bool(text[1:-1].strip())


FIXES: Mapping[str, Check] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "length_constraints:number_sentences": _sentence_count,
    "length_constraints:number_words": _word_count,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:repeat_prompt": _repeat_then_answer,
    "startend:end_checker": _end,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
}
"""Instruction id -> the check in place of the package's."""
