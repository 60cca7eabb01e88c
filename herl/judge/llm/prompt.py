"""A task and an answer -> questions for a judging model, in one of five modes.

All material is treated as data: each part is enclosed by two lines with a code that occurs nowhere in it,
so no part can end itself and pose as another. Whole control tokens of chat templates get an invisible
character, because servers would interpret them; all other text is unchanged. The reply repeats the code, so
the judge's own JSON cannot be confused with JSON that it quotes from an answer. The code depends only on the
task and its rubric, unless an answer guesses it, so the questions about one prompt share a prefix that
servers can cache.

In `group` mode all answers to a prompt stand in one question. Each has a name that is made for the question
and that no answer contains, so no answer can end itself, pose as another, or name another. They stand in the
order of a hash, equal answers once.

An answer in several turns is a part for each turn and each reply, so no turn can pose as the reply of a tool.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from herl import prompt_text
from herl.judge.llm.scale import Scale
from herl.prompt_text import defuse
from herl.types import Criterion, Message, Spoken, Task

Mode = Literal["one_shot", "per_criterion", "batched", "holistic", "group"]
Shown = str | Spoken
"""An answer as a question shows it: its text, or all that was said in its turns."""
REASON_RULE = " Give the reason first, in one short sentence."
NAME_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""Consonants, which form no words."""
NAME_LENGTH = 6
_FIELDS = {"verdict_rule", "material", "code", "count", "form"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The criteria that one request asks about, and its messages."""

    criteria: tuple[Criterion, ...]
    messages: tuple[Message, ...]
    schema: dict[str, Any]
    code: str
    """The code of the material's fences, which the reply repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupQuestion(Question):
    """The question about several answers to one task."""

    names: dict[Shown, str]
    """An answer -> its name in the question, in the order of the question."""


class PromptBuilder:
    """Builds the questions of one mode.

    Args:
        mode: `one_shot` asks about the whole rubric at once, `batched` about a few criteria at a time,
            `per_criterion` about one, `holistic` for a single score, `group` about the whole rubric and
            several answers.
        scale: The allowed verdicts.
        criteria_per_call: Criteria per question in `batched` mode.
        reasons: Whether each verdict comes with a reason.
        reason_characters: Maximum length of a reason, if the schema is enforced; None for no limit.
        show_reference: Whether the judge sees the task's reference answer, if it has one.
        template: System and user text, separated by a line ---; None for the mode's default.
    """

    def __init__(
        self,
        mode: Mode,
        scale: Scale,
        criteria_per_call: int = 4,
        reasons: bool = True,
        reason_characters: int | None = None,
        show_reference: bool = True,
        template: str | None = None,
    ) -> None:
        text = template or prompt_text.load("herl.judge.llm", f"{mode}.txt")
        prompt_text.check("judge.template", text, _FIELDS)
        self._system, _, self._user = text.partition("\n---\n")
        self._mode = mode
        self._scale = scale
        self._per_call = {"per_criterion": 1, "batched": criteria_per_call}.get(mode)
        self._reasons = reasons
        self._reason_characters = reason_characters
        self._show_reference = show_reference

    def questions(self, task: Task, answer: Shown) -> Iterator[Question]:
        """Yields the questions about one answer, which together cover each criterion once."""
        criteria = task.rubric.criteria
        step = self._per_call or len(criteria)
        for start in range(0, len(criteria), step):
            yield self._question(task, answer, criteria[start : start + step])

    def _question(self, task: Task, answer: Shown, criteria: tuple[Criterion, ...]) -> Question:
        said = answer_parts("ANSWER", answer)
        parts = [*self._parts(task, criteria), *_note([answer]), *said]
        code = fresh_code([text for _, text in parts], len(said))
        return Question(
            criteria=criteria,
            messages=self._messages(parts, code, len(criteria), self._form(len(criteria), code)),
            schema=self._schema(len(criteria), code),
            code=code,
        )

    def in_order(self, task: Task, answers: Sequence[Shown]) -> list[Shown]:
        """Returns the different ones of some answers in the order of a hash of task and answer.

        It depends neither on which answer came first nor on what is good about it.
        """
        source = [text for _, text in self._parts(task, task.rubric.criteria)]

        def place(answer: Shown) -> bytes:
            return hashlib.sha256(json.dumps([*source, answer]).encode()).digest()

        return sorted(set(answers), key=place)

    def group_question(self, task: Task, answers: Sequence[Shown]) -> GroupQuestion:
        """Returns the question about some answers, which must differ from each other."""
        criteria = task.rubric.criteria
        parts = [*self._parts(task, criteria), *_note(answers)]
        said = [text for answer in answers for _, text in answer_parts("", answer)]
        texts = [*(text for _, text in parts), *said]
        code = fresh_code(texts, len(said))
        names = fresh_names(code, len(answers), texts)
        for name, answer in zip(names, answers, strict=True):
            parts += answer_parts(f"ANSWER {name}", answer)
        verdicts = self._verdicts_schema(len(criteria))
        repeated = {"code": {"type": "string", "enum": [code]}}
        return GroupQuestion(
            criteria=criteria,
            messages=self._messages(parts, code, len(criteria), self._group_form(len(criteria), code, names)),
            schema=_object(repeated | {"answers": _object(dict.fromkeys(names, verdicts))}),
            code=code,
            names=dict(zip(answers, names, strict=True)),
        )

    def _parts(self, task: Task, criteria: Sequence[Criterion]) -> list[tuple[str, str]]:
        """The material besides the answer, by name."""
        parts = [(f"MESSAGE FROM {message['role'].upper()}", message["content"]) for message in task.messages]
        if self._show_reference and task.reference:
            parts.append(("REFERENCE ANSWER", task.reference))
        parts.append(("RUBRIC", "\n".join(map(self._line, range(1, len(criteria) + 1), criteria))))
        return [(name, defuse(text)) for name, text in parts]

    def _messages(
        self, parts: Sequence[tuple[str, str]], code: str, count: int, form: str
    ) -> tuple[Message, Message]:
        fields = {
            "verdict_rule": self._scale.rule + (REASON_RULE if self._reasons else ""),
            "material": "\n\n".join(fence(name, text, code) for name, text in parts),
            "code": code,
            "count": str(count),
            "form": form,
        }
        return (
            {"role": "system", "content": prompt_text.fill(self._system, fields)},
            {"role": "user", "content": prompt_text.fill(self._user, fields)},
        )

    def _line(self, number: int, criterion: Criterion) -> str:
        points = f" ({criterion.weight:+g} points)" if self._mode == "holistic" else ""
        return f"{number}. {' '.join(criterion.text.split())}{points}"

    def _form(self, count: int, code: str) -> str:
        words = ", ".join(f'"{word}"' for word in self._scale.words)
        key = "score" if self._mode == "holistic" else "verdict"
        reason = '"reason": "...", ' if self._reasons else ""
        entry = f'{reason}"{key}": <one of {words}>'
        if self._mode == "holistic":
            return f'{{"code": "{code}", {entry}}}'
        return f'{{"code": "{code}", "verdicts": {_numbered(entry, count)}}}'

    def _group_form(self, count: int, code: str, names: Sequence[str]) -> str:
        words = ", ".join(f'"{word}"' for word in self._scale.words)
        reason = '"reason": "...", ' if self._reasons else ""
        entry = f'{reason}"verdict": <one of {words}>'
        shown = [f'"{names[0]}": {_numbered(entry, count)}', *(f'"{name}": {{...}}' for name in names[1:])]
        return f'{{"code": "{code}", "answers": {{{", ".join(shown)}}}}}'

    def _schema(self, count: int, code: str) -> dict[str, Any]:
        repeated = {"code": {"type": "string", "enum": [code]}}  # more endpoints know enum than const
        if self._mode == "holistic":
            return _object(repeated | self._entry("score"))
        return _object(repeated | {"verdicts": self._verdicts_schema(count)})

    def _verdicts_schema(self, count: int) -> dict[str, Any]:
        return _object({str(n): _object(self._entry("verdict")) for n in range(1, count + 1)})

    def _entry(self, key: str) -> dict[str, Any]:
        reason: dict[str, Any] = {"type": "string"}
        if self._reason_characters is not None:
            reason["maxLength"] = self._reason_characters
        return ({"reason": reason} if self._reasons else {}) | {
            key: {"type": "string", "enum": self._scale.words}
        }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def answer_parts(name: str, answer: Shown) -> list[tuple[str, str]]:
    """Returns the parts of an answer by name: one, or one for each turn and reply."""
    if isinstance(answer, str):
        return [(name, defuse(answer))]
    return [
        (f"{name} PART {number} BY {speaker}", defuse(text))
        for number, (speaker, text) in enumerate(answer, 1)
    ]


def _note(answers: Sequence[Shown]) -> list[tuple[str, str]]:
    """How to read answers in several turns, if there are any."""
    if all(isinstance(answer, str) for answer in answers):
        return []
    return [("HOW TO READ THE PARTS OF AN ANSWER", prompt_text.load("herl.judge.llm", "transcript.txt"))]


def fence(name: str, text: str, code: str) -> str:
    """Returns a part of the material, enclosed by its two lines."""
    return f"=== {name} {code} ===\n{text}\n=== END {name} {code} ==="


def fresh_code(texts: Sequence[str], answers: int = 1) -> str:
    """Returns eight hexadecimal digits that occur in none of the texts, ignoring case.

    The last texts, the answers, influence the code only if they contain it.
    """
    lowered = [text.lower() for text in texts]
    source = json.dumps(list(texts[: len(texts) - answers]))
    attempt = 0
    while True:
        code = hashlib.sha256(f"{attempt}:{source}".encode()).hexdigest()[:8]
        if not any(code in text for text in lowered):
            return code
        attempt += 1


def fresh_names(code: str, count: int, texts: Sequence[str]) -> list[str]:
    """Returns a name of six letters for each answer that occurs in none of the texts, ignoring case.

    Names depend on the code, and on the texts only if those contain one.
    """
    lowered = [text.lower() for text in texts]
    names: list[str] = []
    attempt = 0
    while len(names) < count:
        digest = hashlib.sha256(f"{code}:{attempt}".encode()).digest()
        name = "".join(NAME_LETTERS[byte % len(NAME_LETTERS)] for byte in digest[:NAME_LENGTH])
        if name not in names and not any(name.lower() in text for text in lowered):
            names.append(name)
        attempt += 1
    return names


def _numbered(entry: str, count: int) -> str:
    """The form of the verdicts on so many criteria."""
    shown = [f'"1": {{{entry}}}', *["..."] * (count > 2), *[f'"{count}": {{...}}'] * (count > 1)]
    return f"{{{', '.join(shown)}}}"
