"""A prompt, its rubric, and a judge's word on one of its criteria."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import regex

Message = Mapping[str, str]
"""One chat message: {"role": "system" | "user" | "assistant" | "tool", "content": text}; a tool's may have
its "name" and the "tool_call_id" that it answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One line of a rubric."""

    id: str
    """Unique within its rubric and stable over epochs: curves by criterion use it as their name."""
    text: str
    """The text that the judge and the revision prompt read: "Says that it eats fish."."""
    weight: float = 1.0
    """Points. Negative for something that should not happen."""
    title: str = ""
    category: str = ""
    check: Mapping[str, Any] | None = None
    """How a rule judges it, e.g. {"kind": "max_words", "count": 15}. None if only a reader can tell."""
    undesirable: bool = False
    """True if *met* means that something bad happened."""
    gate: bool = False
    """True if an answer that fails it earns nothing (aggregation `gated`)."""
    named: bool = True
    """False if `id` is only a position in the rubric. It then means another criterion in another rubric, so
    curves and tables by criterion leave it out."""

    @property
    def wish(self) -> str:
        """What an answer should do: `text`, or "Avoid: " and `text`."""
        return f"Avoid: {self.text}" if self.undesirable else self.text

    def good(self, met: bool) -> bool:
        """Whether the verdict `met` fulfills the author's wish."""
        return met != self.undesirable

    def goodness(self, verdict: Verdict) -> float:
        """Returns how well the wish is fulfilled, in [0, 1]. The verdict must not be an abstention.

        >>> advert = Criterion(id="advert", text="Advertises a zoo.", weight=-4.0, undesirable=True)
        >>> advert.goodness(Verdict(criterion_id="advert", met=False))
        1.0
        >>> advert.goodness(Verdict(criterion_id="advert", met=True, score=0.75))
        0.25
        """
        value = float(bool(verdict.met)) if verdict.score is None else verdict.score
        return 1.0 - value if self.undesirable else value

    @property
    def unfulfilled(self) -> bool:
        """The verdict `met` of an answer that fulfills nothing, e.g. because it breaks its check."""
        return self.undesirable


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """The weighted criteria of one task."""

    criteria: tuple[Criterion, ...]

    def fulfilled(self, verdicts: Sequence[Verdict]) -> dict[str, bool]:
        """Returns, by criterion id, whether its wish is fulfilled. Abstentions are left out."""
        met = {verdict.criterion_id: verdict.met for verdict in verdicts}
        return {
            criterion.id: criterion.good(answer)
            for criterion in self.criteria
            if (answer := met.get(criterion.id)) is not None
        }

    def goodness(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """Returns, by criterion id, how well its wish is fulfilled. Abstentions are left out."""
        judged = {verdict.criterion_id: verdict for verdict in verdicts if verdict.met is not None}
        return {
            criterion.id: criterion.goodness(judged[criterion.id])
            for criterion in self.criteria
            if criterion.id in judged
        }

    def fulfilled_first(self, verdicts: Sequence[Verdict], others: Iterable[Sequence[Verdict]]) -> set[str]:
        """Returns the ids of criteria that an answer fulfills and none of the others does.

        Each was judged on at least one of the others; where all of them abstained, nothing is known.
        """
        known = [self.fulfilled(other) for other in others]
        mine = self.fulfilled(verdicts)
        return {
            criterion.id
            for criterion in self.criteria
            if mine.get(criterion.id)
            and any(criterion.id in other for other in known)
            and not any(other.get(criterion.id) for other in known)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One prompt of the data set, and the rubric that its answers are judged by."""

    id: str
    messages: tuple[Message, ...]
    """The conversation so far; the last message is the user's."""
    rubric: Rubric
    reference: str | None = None
    """A good answer, if the data has one. Judges may read it; the policy never does."""
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    hidden: tuple[Criterion, ...] = ()
    """Criteria that are kept from the training judge and from hindsight: only gold judges see them
    (`data.hidden_criteria`). They are not in `rubric`."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """The tools of its environment, as chat templates take them: {"type": "function", "function": {"name",
    "description", "parameters": a JSON schema}}."""

    @property
    def whole(self) -> Task:
        """The task as gold judges see it: with its hidden criteria, after the others."""
        if not self.hidden:
            return self
        return replace(self, rubric=Rubric(criteria=(*self.rubric.criteria, *self.hidden)), hidden=())

    @property
    def request(self) -> str:
        """The text of the last user message."""
        return self.messages[-1]["content"]

    def quotes(self, text: str, words: int) -> bool:
        """Whether a text repeats so many words in a row of a criterion that the conversation lacks.

        Case and punctuation do not count. Where a script puts no spaces between words, each character is one.

        >>> short = Rubric(criteria=(Criterion(id="short", text="Use at most 30 words."),))
        >>> task = Task(id="1", messages=({"role": "user", "content": "Say hello."},), rubric=short)
        >>> task.quotes("Hello! (Please use at most 30 words.)", words=5), task.quotes("At most 30?", words=5)
        (True, False)
        """
        told = {run for criterion in self.rubric.criteria for run in _runs(criterion.text, words)}
        for message in self.messages:
            told.difference_update(_runs(message["content"], words))
        return any(run in told for run in _runs(text, words)) if told else False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A judge's word on one criterion."""

    criterion_id: str
    met: bool | None
    """None if the judge abstained. An abstention never counts as "not met"."""
    score: float | None = None
    """A graded verdict in [0, 1]; None if the judge does not grade."""
    reason: str = ""


UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Scripts that put no spaces between words, for a character class."""
_WORD = regex.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")  # with vowel signs, unlike those of `re`


def _runs(text: str, words: int) -> Iterator[tuple[str, ...]]:
    """All runs of so many words in a text."""
    found = _WORD.findall(unicodedata.normalize("NFC", text).casefold())
    return zip(*(found[start:] for start in range(words)), strict=False)
