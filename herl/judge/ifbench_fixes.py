"""IFBench's checks that the package `if-verifiable` gets wrong. Each function says what is wrong there.

A check takes the answer and the arguments from the data, keeps no state, and returns whether the answer
follows the instruction. `herl.checks.instructions` has checked the arguments.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping
from itertools import groupby, pairwise

from herl.judge.ifeval_fixes import Check, bullet
from herl.judge.words import letters, occurrences, straight, words

_NAMES = frozenset(
    words(
        "Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander "
        "Amelia Benjamin Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel "
        "Ella Jacob Scarlett Nathan Victoria Elijah Layla Nicholas Audrey David Hannah Christopher "
        "Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan"
    )
)
_PRONOUNS = frozenset(
    words(
        "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his "
        "himself she her hers herself it its itself they them their theirs themselves themself oneself "
        "who whom whoever whomever anybody anyone anything everybody everyone everything nobody nothing "
        "somebody someone something"
    )
)
_CONJUNCTIONS = {"and", "but", "for", "nor", "or", "so", "yet"}
_MINOR = frozenset(
    words(
        "a an the and but or nor for so yet as if than that at by in into of off on onto out over per "
        "to up upon via with from down near vs v de la le von van"
    )
)
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)*")
_PRIMES = {n for n in range(2, 200) if all(n % k for k in range(2, n))}
_JAPANESE = re.compile("[\u3005\u3040-\u30ff\u4e00-\u9fff\uff66-\uff9f]")


def sentences_of(text: str) -> list[str]:
    """Returns the sentences that have words, as the package splits them."""
    from if_verifiable.ifbench.instructions_util import split_into_sentences

    found: list[str] = split_into_sentences(straight(text))
    return [sentence for sentence in found if words(sentence)]


def _end_marks(text: str) -> Counter[str]:
    return Counter(sentence.rstrip("\"')]*_ ")[-1:] for sentence in sentences_of(text))


def _words_in_range(answer: str, *, min_words: int, max_words: int) -> bool:
    """Upstream: don't and well-known are two words each."""
    return min_words <= len(words(answer)) <= max_words


def _unique_words(answer: str, *, N: int) -> bool:  # noqa: N803
    """Upstream: a separate dash or another sign counts as a word."""
    return len({word.casefold() for word in words(answer)}) >= N


def _conjunctions(answer: str, *, small_n: int) -> bool:
    """Upstream: "and", "And" and "and," count as three different ones."""
    return len(_CONJUNCTIONS & {word.lower() for word in words(answer)}) >= small_n


def _person_names(answer: str, *, N: int) -> bool:  # noqa: N803
    """Upstream: a name is found inside another word, such as Mia in Miami."""
    return len(_NAMES & set(re.findall(r"[^\W_]+", answer))) >= N


def _numbers(answer: str, *, N: int) -> bool:  # noqa: N803
    """Upstream: punctuation is deleted first, so 3, 4 without a space and 10-12 are one number."""
    return len(_NUMBER.findall(answer)) == N


def _pronouns(answer: str, *, N: int) -> bool:  # noqa: N803
    """Upstream: those in I'm and you're are missed, and so are whom, everyone and their like."""
    found = re.findall(r"[^\W\d_]+", straight(answer).lower())
    return sum(1 for word in found if word in _PRONOUNS) >= N


def _every_nth_japanese(answer: str, *, N: int) -> bool:  # noqa: N803
    """Upstream: a separate bullet or another sign counts as a word."""
    return all(word.isdigit() or _JAPANESE.search(word) for word in words(answer)[N - 1 :: N])


def _keywords_multiple(answer: str, **keywords: str) -> bool:
    """Upstream: a keyword is counted inside other words."""
    times = (1, 2, 3, 5, 7)
    return all(
        occurrences(keywords[f"keyword{n}"], answer) == count for n, count in enumerate(times, start=1)
    )


def _sentence_type(answer: str) -> bool:
    """Upstream: an answer without any question has the ratio 2:1, as 0 is twice 0."""
    marks = _end_marks(answer)
    return marks["?"] > 0 and marks["."] == 2 * marks["?"]


def _sentence_balance(answer: str) -> bool:
    """Upstream: an answer without any sentence of these types is balanced."""
    marks = _end_marks(answer)
    return marks["."] > 0 and marks["."] == marks["?"] == marks["!"]


def _overlap(answer: str, *, reference_text: str, percentage: float) -> bool:
    """Upstream: it compares triples of characters instead of words."""
    mine, theirs = (
        set(zip(found, found[1:], found[2:], strict=False))
        for found in ([word.casefold() for word in words(text)] for text in (answer, reference_text))
    )
    return bool(mine) and abs(100 * len(mine & theirs) / len(mine) - percentage) <= 2


def _sentence_words(answer: str) -> bool:
    """Upstream: the words may be the same."""
    sentences = sentences_of(answer)
    found = [word.casefold() for word in words(answer)]
    same_length = len({len(sentence.strip()) for sentence in sentences}) == 1
    return len(sentences) == 3 and same_length and len(set(found)) == len(found)


def _alphabet(answer: str) -> bool:
    """Upstream: typographic quotation marks and dashes break the order."""
    firsts = [unicodedata.normalize("NFKD", word)[0].lower() for word in words(answer)]
    order = string.ascii_lowercase
    if not firsts or firsts[0] not in order:
        return False
    start = order.index(firsts[0])
    return all(first == order[(start + place) % 26] for place, first in enumerate(firsts))


def _consonants(answer: str) -> bool:
    """Upstream: a separate dash or another sign is a word without consonants."""
    found = words(answer.lower())
    return bool(found) and all(re.search("[bcdfghjklmnpqrstvwxyz]{2}", word) for word in found)


def _palindromes(answer: str) -> bool:
    """Upstream: numbers count, and punctuation inside a word is deleted."""
    found = [word.casefold() for word in words(answer)]
    return sum(1 for word in found if word.isalpha() and len(word) >= 5 and word == word[::-1]) >= 10


def _prime_lengths(answer: str) -> bool:
    """Upstream: typographic marks count as letters."""
    found = words(answer)
    return bool(found) and all(len(letters(word)) in _PRIMES for word in found)


def _repeats(answer: str, *, small_n: int) -> bool:
    """Upstream: a word with a typographic mark beside it is another word."""
    counts = Counter(word.casefold() for word in words(answer))
    return all(count <= small_n for count in counts.values())


def _odd_even_syllables(answer: str) -> bool:
    """Upstream: typographic marks spoil the count of syllables."""
    import syllapy

    parities = [syllapy.count(letters(word).lower()) % 2 for word in words(answer)]
    return bool(parities) and all(one != next_ for one, next_ in pairwise(parities))


def _last_first(answer: str) -> bool:
    """Upstream: typographic marks belong to the words."""
    found = [[word.casefold() for word in words(sentence)] for sentence in sentences_of(answer)]
    return bool(found) and all(one[-1] == next_[0] for one, next_ in pairwise(found))


def _paragraph_last_first(answer: str) -> bool:
    """Upstream: a comma behind the first word, or a full stop inside, makes it another word."""
    found = [[word.casefold() for word in words(line)] for line in answer.splitlines()]
    return any(found) and all(line[0] == line[-1] for line in found if line)


def _no_consecutive(answer: str) -> bool:
    """Upstream: two words that begin with typographic marks share their first letter."""
    return all(one[0] != next_[0] for one, next_ in pairwise(words(answer.lower())))


def _keyword_at(answer: str, *, keyword: str, n: int, m: int) -> bool:
    """Upstream: commas and full stops count as words, and the letter case matters."""
    sentences = sentences_of(answer)
    found = words(sentences[n - 1]) if n <= len(sentences) else []
    return m <= len(found) and found[m - 1].casefold() == _as_word(keyword)


def _keyword_second(answer: str, *, keyword: str) -> bool:
    """Upstream: the full stop at the end counts as a word, and the letter case matters."""
    found = [word.casefold() for word in words(answer)]
    return len(found) > 1 and found[1] == found[-2] == _as_word(keyword)


def _as_word(keyword: str) -> str:
    return " ".join(words(keyword)).casefold()


def _alliteration(answer: str) -> bool:
    """Upstream: it adds up all sequences of a sentence, where the longest one counts."""
    lengths = []
    for sentence in sentences_of(answer):
        runs = [len(list(run)) for _, run in groupby(word[0].lower() for word in words(sentence))]
        lengths.append(max(runs) if max(runs) > 1 else 0)
    return bool(lengths) and all(one < next_ for one, next_ in pairwise(lengths))


def _sentence_keyword(answer: str, *, word: str, N: int) -> bool:  # noqa: N803
    """Upstream: the keyword is found inside other words."""
    sentences = sentences_of(answer)
    return len(sentences) >= N and occurrences(word, sentences[N - 1]) > 0


def _increment(answer: str, *, small_n: int) -> bool:
    """Upstream: a separate dash counts as a word."""
    counts = [len(words(sentence)) for sentence in sentences_of(answer)]
    return bool(counts) and all(next_ == one + small_n for one, next_ in pairwise(counts))


def _parentheses(answer: str) -> bool:
    """Upstream: five that open and one that closes pass."""
    closing = {")": "(", "]": "[", "}": "{"}
    open_: list[tuple[str, int]] = []  # with the depth of what was closed inside
    for character in answer:
        if character in "([{":
            open_.append((character, 0))
        elif character in closing and open_:
            opened, inside = open_.pop()
            if opened != closing[character]:
                open_.clear()
            elif inside + 1 >= 5:
                return True
            elif open_:
                open_[-1] = (open_[-1][0], max(open_[-1][1], inside + 1))
    return False


def _quotes(answer: str) -> bool:
    """Upstream: an apostrophe counts as a quotation mark, and typographic ones do not."""
    plain = re.sub(r"(?<=\w)'(?=\w)", "", straight(answer))
    open_: list[str] = []
    deepest = 0
    for character in plain:
        if open_ and character == open_[-1]:
            open_.pop()
            if deepest - len(open_) >= 3:
                return True
            deepest = deepest if open_ else 0
        elif character in "\"'":
            open_.append(character)
            deepest = max(deepest, len(open_))
    return False


def _options(answer: str, *, options: str) -> bool:
    """Upstream: options are split at "or" inside words, and a line break at the end fails."""
    bare = string.punctuation + string.whitespace
    lettered = re.match(r"\W*a\W*b\W*c\b", options, flags=re.IGNORECASE)
    parts = options.split("/") if "/" in options else re.split(r",\s*(?:or\s+)?|\s+or\s+", options)
    if lettered:
        return answer.strip() in [part.strip() for part in parts]
    return straight(answer).strip(bare).lower() in [straight(part).strip(bare).lower() for part in parts]


def _newline(answer: str) -> bool:
    """Upstream: a line of blanks makes up for a line with two words."""
    counts = [len(words(line)) for line in answer.splitlines()]
    return any(counts) and max(counts) == 1


def _stairs(answer: str) -> bool:
    """Upstream: of several empty lines some stay and break the stairs; one line, or tabs, are misjudged."""
    lines = [line.expandtabs() for line in answer.splitlines() if line.strip()]
    indents = [len(line) - len(line.lstrip()) for line in lines]
    return len(indents) > 1 and all(one < next_ for one, next_ in pairwise(indents))


def _quote_unquote(answer: str) -> bool:
    """Upstream: quotations with only a comma between them pass, and an answer of digits raises an error."""
    parts = straight(answer).replace("'\"'", "").split('"')
    return all(words(after) for after in parts[2::2])


def _list(answer: str, *, sep: str) -> bool:
    """Upstream: the mark is found anywhere, such as the hyphens of well-known words."""
    lines = (line.strip() for line in answer.splitlines())
    return sum(1 for line in lines if line.startswith(sep.strip()) and words(line[len(sep.strip()) :])) >= 2


def _thesis(answer: str) -> bool:
    """Upstream: it is off by one for <em>, so an empty thesis and one without a text behind it pass."""
    tagged = re.finditer(r"<(i|em)>([^<]*)</\1>", answer, flags=re.IGNORECASE)
    found = next((one for one in tagged if one[2].strip()), None)
    return found is not None and bool(words(re.sub("<[^<>]*>", "", answer[found.end() :])))


def _sub_bullets(answer: str) -> bool:
    """Upstream: no bullets pass, every asterisk is a bullet, and every hyphen is a sub-bullet."""
    marks = "".join(line.strip()[0] for line in answer.splitlines() if bullet(line))
    return "*" in marks and "**" not in marks and not marks.endswith("*")


def _no_bullets_bullets(answer: str) -> bool:
    """Upstream: an empty line between bullets fails, and sentences without a period count."""
    lines = answer.splitlines()
    first = next((place for place, line in enumerate(lines) if bullet(line, "*")), len(lines))
    ended = _end_marks("\n".join(lines[:first]))["."]
    return ended >= 2 and sum(bullet(line, "*") for line in lines) >= 2


def _title_case(answer: str) -> bool:
    """Upstream: articles and short prepositions, and contractions such as Don't, fail; ALL CAPITALS pass."""
    found = words(answer)
    major = [w for n, w in enumerate(found) if w[0].isalpha() and (n == 0 or w.lower() not in _MINOR)]
    shouted = len(found) > 2 and all(word.isupper() for word in found if any(map(str.isalpha, word)))
    return bool(major) and not shouted and not any(word[0].islower() for word in major)


def _template(answer: str) -> bool:
    """Upstream: the parts may come in any order, and be empty."""
    parts = re.split("My Answer:|My Conclusion:|Future Outlook:", answer)
    labels = re.findall("My Answer:|My Conclusion:|Future Outlook:", answer)
    return labels == ["My Answer:", "My Conclusion:", "Future Outlook:"] and all(map(words, parts[1:]))


def _emoji(answer: str) -> bool:
    """Upstream: it sees one character of an emoji, and so misses flags, keycaps and joined ones."""
    import emoji
    from if_verifiable.ifbench.instructions import EmojiSentenceChecker

    checker = EmojiSentenceChecker("format:emoji")
    return bool(checker.check_following(emoji.replace_emoji(answer, "\N{GRINNING FACE}")))


FIXES: Mapping[str, Check] = {
    "count:word_count_range": _words_in_range,
    "count:unique_word_count": _unique_words,
    "count:conjunctions": _conjunctions,
    "count:person_names": _person_names,
    "count:numbers": _numbers,
    "count:pronouns": _pronouns,
    "count:words_japanese": _every_nth_japanese,
    "count:keywords_multiple": _keywords_multiple,
    "ratio:sentence_type": _sentence_type,
    "ratio:sentence_balance": _sentence_balance,
    "ratio:overlap": _overlap,
    "ratio:sentence_words": _sentence_words,
    "words:alphabet": _alphabet,
    "words:consonants": _consonants,
    "words:palindrome": _palindromes,
    "words:prime_lengths": _prime_lengths,
    "words:repeats": _repeats,
    "words:odd_even_syllables": _odd_even_syllables,
    "words:last_first": _last_first,
    "words:paragraph_last_first": _paragraph_last_first,
    "words:no_consecutive": _no_consecutive,
    "words:keywords_specific_position": _keyword_at,
    "words:words_position": _keyword_second,
    "sentence:alliteration_increment": _alliteration,
    "sentence:keyword": _sentence_keyword,
    "sentence:increment": _increment,
    "format:parentheses": _parentheses,
    "format:quotes": _quotes,
    "format:options": _options,
    "format:newline": _newline,
    "format:emoji": _emoji,
    "format:line_indent": _stairs,
    "format:quote_unquote": _quote_unquote,
    "format:list": _list,
    "format:thesis": _thesis,
    "format:sub-bullets": _sub_bullets,
    "format:no_bullets_bullets": _no_bullets_bullets,
    "format:title_case": _title_case,
    "format:output_template": _template,
}
"""Instruction id -> the check in place of the package's."""
