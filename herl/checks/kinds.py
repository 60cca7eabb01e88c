"""The kinds of checks: what each needs, and how it is applied to an answer.

| kind         | other keys                  | met when the answer ...                                     |
|--------------|-----------------------------|-------------------------------------------------------------|
| contains     | text                        | contains the text, in any letter case                       |
| contains_any | texts                       | contains at least one of the texts                          |
| contains_all | texts                       | contains every one of the texts                             |
| excludes     | texts                       | contains none of the texts                                  |
| starts_with  | text                        | starts with the text                                        |
| ends_with    | text                        | ends with the text                                          |
| equals       | text                        | is the text                                                 |
| exact_match  | texts, until, steps,        | gives one of the texts, letter for letter, after it was cut |
|              | ignore_... (all optional    | and searched (`herl.checks.exact_match`)                    |
|              | but texts)                  |                                                             |
| regex        | pattern                     | has a match (case matters; `herl.checks.patterns`)          |
| max_words    | count                       | has at most that many words                                 |
| min_words    | count                       | has at least that many words                                |
| count        | of, at_least, at_most       | has at_least to at_most words, sentences, lines, paragraphs |
|              |                             | or characters; or matches of `of: {regex: pattern}`         |
| json         | schema (optional)           | is JSON, alone or in one code fence, that fits the schema   |
| numeric      | value, tolerance (optional) | gives a number within tolerance x abs(value) of `value`, or |
|              |                             | within tolerance of 0; 1e-6 by default                      |
|              |                             | (`herl.checks.numbers`)                                     |
| python       | path, further arguments     | makes the function at `path` return true                    |
| calls_tool   | tool, arguments, at_least,  | called the tool at_least (1) to at_most times, with these   |
|              | at_most, succeeds (all      | arguments among its own; a call that failed counts only     |
|              | optional but tool)          | with `succeeds: false`                                      |
| instruction  | instruction_id, kwargs      | follows an instruction of IFEval or IFBench                 |
| x-...        | anything                    | a judge of yours says so; such a check is not looked into   |

Texts are compared in Unicode's form NFC, except by `exact_match`.

The judge applies `python`, `calls_tool` and `instruction`; every other kind applies itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import regex
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from herl.checks import exact_match, json_text, numbers, patterns
from herl.checks.instructions import whole
from herl.types import ToolCall

_SENTENCE_END = re.compile(r"[.!?\u2026]+(?=[\"'\u201d\u2019)\]*_]*(?:\s|$))|[\u3002\uff01\uff1f]+|$")
_ABBREVIATION = re.compile(
    r"(?:\b(?:dr|mr|mrs|ms|prof|st|jr|sr|vs|fig|approx|e\.g|i\.e|cf)|(?<![^\W\d_])[A-Z])$", re.IGNORECASE
)
Unit = Literal["words", "sentences", "lines", "paragraphs", "characters"]


def _folded(text: str) -> str:
    """A text in which neither letter case nor the way of writing an accent (NFC, NFD) makes a difference."""
    return unicodedata.normalize("NFC", text).lower()


def _visible(text: str) -> str:
    if not text.strip():
        raise ValueError("it has nothing but white space")
    return text


def _readable(pattern: str) -> str:
    try:
        patterns.compiled(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error
    return pattern


def _sound(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    if schema is not None:
        try:
            json_text.check_schema(schema)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
    return schema


# The descriptions complete "expected ..." in messages.
Text = Annotated[str, Field(min_length=1, description="a text that is not empty")]
Phrase = Annotated[str, AfterValidator(_visible), Field(description="a text that is not empty")]
Texts = Annotated[list[Text], Field(min_length=1, description="a list of texts")]
Pattern = Annotated[str, Field(min_length=1, description="a pattern"), AfterValidator(_readable)]
Count = Annotated[
    int, BeforeValidator(whole), Field(strict=True, ge=0, description="a whole number, at least 0")
]


class Check(BaseModel):
    """One criterion's check, without its kind."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    slow: ClassVar[bool] = False
    """Whether an answer can make it work for seconds, so that it must not hold up an event loop."""

    def met(self, answer: str) -> bool:
        """Whether the answer meets it.

        Raises:
            BrokenByAnswerError: the answer makes it impossible to tell.
            TooSlowError: the check takes too long.
        """
        raise NotImplementedError


class Contains(Check):
    """The answer contains the text, in any letter case."""

    text: Text

    def met(self, answer: str) -> bool:
        return _folded(self.text) in _folded(answer)


class ContainsAny(Check):
    """It contains at least one of the texts."""

    texts: Texts

    def met(self, answer: str) -> bool:
        folded = _folded(answer)
        return any(_folded(text) in folded for text in self.texts)


class ContainsAll(Check):
    """It contains every one of the texts."""

    texts: Texts

    def met(self, answer: str) -> bool:
        folded = _folded(answer)
        return all(_folded(text) in folded for text in self.texts)


class Excludes(Check):
    """It contains none of the texts."""

    texts: Texts

    def met(self, answer: str) -> bool:
        folded = _folded(answer)
        return not any(_folded(text) in folded for text in self.texts)


class StartsWith(Check):
    """It starts with the text."""

    text: Phrase

    def met(self, answer: str) -> bool:
        return _folded(answer.lstrip()).startswith(_folded(self.text.lstrip()))


class EndsWith(Check):
    """It ends with the text."""

    text: Phrase

    def met(self, answer: str) -> bool:
        return _folded(answer.rstrip()).endswith(_folded(self.text.rstrip()))


class Equals(Check):
    """It is the text."""

    text: Phrase

    def met(self, answer: str) -> bool:
        return _folded(answer.strip()) == _folded(self.text.strip())


class FindPattern(exact_match.Find):
    """A step of `exact_match`, whose pattern can be read."""

    find: Pattern


class ExactMatch(Check):
    """What it gives after these steps is one of the texts, letter for letter."""

    slow: ClassVar[bool] = True
    texts: Texts
    until: Annotated[list[str], Field(description="a list of texts")] = Field(default_factory=list)
    steps: Annotated[
        list[exact_match.Step | FindPattern],
        Field(description="a list of lowercase, uppercase, remove_whitespace or {find: a pattern}"),
    ] = Field(default_factory=list)
    ignore_patterns: Annotated[list[Pattern], Field(description="a list of patterns")] = Field(
        default_factory=list
    )
    ignore_case: Annotated[bool, Field(description="true or false")] = False
    ignore_punctuation: Annotated[bool, Field(description="true or false")] = False
    ignore_numbers: Annotated[bool, Field(description="true or false")] = False

    def met(self, answer: str) -> bool:
        ignored = (self.ignore_patterns, self.ignore_case, self.ignore_punctuation, self.ignore_numbers)
        gave = exact_match.compared(exact_match.given(answer, self.until, self.steps), *ignored)
        return any(gave == exact_match.compared(text, *ignored) for text in self.texts)


class Regex(Check):
    """The pattern has a match in it."""

    slow: ClassVar[bool] = True
    pattern: Pattern

    def met(self, answer: str) -> bool:
        return patterns.found(self.pattern, answer)


class MaxWords(Check):
    """It has at most that many words."""

    count: Count

    def met(self, answer: str) -> bool:
        return len(answer.split()) <= self.count


class MinWords(Check):
    """It has at least that many words."""

    count: Count

    def met(self, answer: str) -> bool:
        return len(answer.split()) >= self.count


class Matches(Check):
    """What `count` counts if it is a pattern."""

    regex: Pattern


class Counted(Check):
    """It has from at_least to at_most units or matches."""

    slow: ClassVar[bool] = True
    of: Annotated[
        Unit | Matches,
        Field(description="one of words, sentences, lines, paragraphs, characters, or {regex: a pattern}"),
    ]
    at_least: Count = 0
    at_most: Count | None = None

    @model_validator(mode="after")
    def _has_room(self) -> Counted:
        if self.at_most is None and self.at_least == 0:
            raise ValueError("expected at_least, at_most or both, got neither: every answer would meet it")
        if self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"expected at_least up to at_most, got {self.at_least} and {self.at_most}")
        return self

    def met(self, answer: str) -> bool:
        number = units(answer, self.of) if isinstance(self.of, str) else patterns.count(self.of.regex, answer)
        return self.at_least <= number and (self.at_most is None or number <= self.at_most)


class JSON(Check):
    """It is JSON that fits the schema."""

    slow: ClassVar[bool] = True
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
    fits: Annotated[
        dict[str, Any] | None, Field(alias="schema", description="a JSON schema"), AfterValidator(_sound)
    ] = None

    def met(self, answer: str) -> bool:
        return json_text.is_json(answer, self.fits)


class Numeric(Check):
    """The number that it gives is the value, within a share of it; of 0, within the tolerance itself."""

    slow: ClassVar[bool] = True
    value: Annotated[float, Field(allow_inf_nan=False, description="a number")]
    tolerance: Annotated[
        float, Field(ge=0, lt=1, description="a share of the value, at least 0 and below 1")
    ] = 1e-6

    def met(self, answer: str) -> bool:
        return numbers.gives_number(answer, self.value, self.tolerance)


class Python(Check):
    """A function of the user's. The judge calls it, if its module is allowed."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    path: Annotated[Text, Field(description="the path of a function, such as my_checks.rhymes")]

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the function."""
        return dict(self.model_extra or {})


class CallsTool(Check):
    """An episode called a tool, before its last answer."""

    tool: Annotated[Text, Field(description="the name of a tool")]
    arguments: Annotated[dict[str, Any], Field(description="a mapping of arguments")] = Field(
        default_factory=dict
    )
    at_least: Count = 1
    at_most: Count | None = None
    succeeds: Annotated[bool, Field(description="true or false")] = True

    @model_validator(mode="after")
    def _has_room(self) -> CallsTool:
        if self.at_least == 0 and self.at_most is None:
            raise ValueError("expected at_most with at_least: 0, got neither: every answer would meet it")
        if self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"expected at_least up to at_most, got {self.at_least} and {self.at_most}")
        return self

    def called(self, calls: Sequence[ToolCall]) -> bool:
        """Whether the calls of an episode meet it."""
        number = sum(map(self._counts, calls))
        return self.at_least <= number and (self.at_most is None or number <= self.at_most)

    def _counts(self, call: ToolCall) -> bool:
        given = call.arguments
        same = all(
            name in given and json_text.comparable(given[name]) == json_text.comparable(value)
            for name, value in self.arguments.items()
        )
        return call.name == self.tool and same and not (self.succeeds and call.error)


class Instruction(Check):
    """A verifiable instruction of IFEval or IFBench. `herl.data.sources` checks its arguments."""

    instruction_id: Annotated[Text, Field(description="an instruction such as punctuation:no_comma")]
    kwargs: Annotated[dict[str, Any], Field(description="a mapping of arguments")] = Field(
        default_factory=dict
    )


KINDS: Mapping[str, type[Check]] = {
    "contains": Contains,
    "contains_any": ContainsAny,
    "contains_all": ContainsAll,
    "excludes": Excludes,
    "starts_with": StartsWith,
    "ends_with": EndsWith,
    "equals": Equals,
    "exact_match": ExactMatch,
    "regex": Regex,
    "max_words": MaxWords,
    "min_words": MinWords,
    "count": Counted,
    "json": JSON,
    "numeric": Numeric,
    "python": Python,
    "calls_tool": CallsTool,
    "instruction": Instruction,
}


def units(answer: str, unit: Unit) -> int:
    """Returns the number of units. No answer makes it slow, which patterns over white space would be."""
    if unit == "words":
        return len(answer.split())
    if unit == "sentences":
        return _sentences(answer)
    if unit == "lines":
        return sum(1 for line in answer.split("\n") if line.strip())
    if unit == "paragraphs":
        return _paragraphs(answer)
    return len(answer)


def _sentences(answer: str) -> int:
    """Counts the texts with words up to a full stop, but not up to that of 3.14 or Dr. Smith."""
    count, checked, words, last = 0, 0, False, len(answer.rstrip())
    for end in _SENTENCE_END.finditer(answer):
        words = words or any(map(str.isalnum, answer[checked : end.start()]))
        checked = end.end()
        goes_on = end[0] == "." and checked < last
        if goes_on and _ABBREVIATION.search(answer, max(0, end.start() - 10), end.start()):
            continue
        count, words = count + words, False
    return count


def _paragraphs(answer: str) -> int:
    """Counts the blocks of lines between lines that are empty or blank."""
    filled = [bool(line.strip()) for line in answer.split("\n")]
    return sum(now and not before for before, now in zip([False, *filled], filled, strict=False))
