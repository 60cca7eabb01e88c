"""A task and an answer -> questions for a judging model, in one of four modes.

All material is treated as data: each part is enclosed by two lines with a code that occurs nowhere in it,
so no part can end itself and pose as another. Whole control tokens of chat templates get an invisible
character, because servers would interpret them; all other text is unchanged. The reply repeats the code, so
the judge's own JSON cannot be confused with JSON that it quotes from an answer. The code depends only on the
task and its rubric, unless an answer guesses it, so the questions about one prompt share a prefix that
servers can cache.
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
from herl.types import Criterion, Message, Task

Mode = Literal["one_shot", "per_criterion", "batched", "holistic"]
REASON_RULE = " Give the reason first, in one short sentence."
_FIELDS = {"verdict_rule", "material", "code", "count", "form"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The criteria that one request asks about, and its messages."""

    criteria: tuple[Criterion, ...]
    messages: tuple[Message, ...]
    schema: dict[str, Any]
    code: str
    """The code of the material's fences, which the reply repeats."""


class PromptBuilder:
    """Builds the questions of one mode.

    Args:
        mode: `one_shot` asks about the whole rubric at once, `batched` about a few criteria at a time,
            `per_criterion` about one, `holistic` for a single score.
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

    def questions(self, task: Task, answer: str) -> Iterator[Question]:
        """Yields the questions about one answer, which together cover each criterion once."""
        criteria = task.rubric.criteria
        step = self._per_call or len(criteria)
        for start in range(0, len(criteria), step):
            yield self._question(task, answer, criteria[start : start + step])

    def _question(self, task: Task, answer: str, criteria: tuple[Criterion, ...]) -> Question:
        parts = [(f"MESSAGE FROM {message['role'].upper()}", message["content"]) for message in task.messages]
        if self._show_reference and task.reference:
            parts.append(("REFERENCE ANSWER", task.reference))
        parts.append(("RUBRIC", "\n".join(map(self._line, range(1, len(criteria) + 1), criteria))))
        parts.append(("ANSWER", answer))
        parts = [(name, defuse(text)) for name, text in parts]
        code = fresh_code([text for _, text in parts])
        fields = {
            "verdict_rule": self._scale.rule + (REASON_RULE if self._reasons else ""),
            "material": "\n\n".join(fence(name, text, code) for name, text in parts),
            "code": code,
            "count": str(len(criteria)),
            "form": self._form(len(criteria), code),
        }
        return Question(
            criteria=criteria,
            messages=(
                {"role": "system", "content": prompt_text.fill(self._system, fields)},
                {"role": "user", "content": prompt_text.fill(self._user, fields)},
            ),
            schema=self._schema(len(criteria), code),
            code=code,
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
        shown = [f'"1": {{{entry}}}', *["..."] * (count > 2), *[f'"{count}": {{...}}'] * (count > 1)]
        return f'{{"code": "{code}", "verdicts": {{{", ".join(shown)}}}}}'

    def _schema(self, count: int, code: str) -> dict[str, Any]:
        key = "score" if self._mode == "holistic" else "verdict"
        reason: dict[str, Any] = {"type": "string"}
        if self._reason_characters is not None:
            reason["maxLength"] = self._reason_characters
        repeated = {"code": {"type": "string", "enum": [code]}}  # more endpoints know enum than const
        entry = ({"reason": reason} if self._reasons else {}) | {
            key: {"type": "string", "enum": self._scale.words}
        }
        if self._mode == "holistic":
            return _object(repeated | entry)
        verdicts = _object({str(n): _object(entry) for n in range(1, count + 1)})
        return _object(repeated | {"verdicts": verdicts})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def fence(name: str, text: str, code: str) -> str:
    """Returns a part of the material, enclosed by its two lines."""
    return f"=== {name} {code} ===\n{text}\n=== END {name} {code} ==="


def fresh_code(texts: Sequence[str]) -> str:
    """Returns eight hexadecimal digits that occur in none of the texts, ignoring case.

    The last text, the answer, influences the code only if it contains it.
    """
    lowered = [text.lower() for text in texts]
    source = json.dumps(texts[:-1])
    attempt = 0
    while True:
        code = hashlib.sha256(f"{attempt}:{source}".encode()).hexdigest()[:8]
        if not any(code in text for text in lowered):
            return code
        attempt += 1
