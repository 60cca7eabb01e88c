"""The turns of an episode, as lines of JSON and as people read them.

An answer in one turn has none of this: neither its record nor what is shown of it mentions turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from pydantic import BaseModel, ConfigDict, Json, TypeAdapter, ValidationError

from herl.errors import DataError
from herl.prompt_text import valid
from herl.types import Rollout, ToolCall, Turn
from herl.types.answer import transcribed


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Call(_Part):
    name: str
    arguments: Json[dict[str, Any]] = {}
    error: str = ""


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    role: str
    content: str
    name: str | None = None


class TurnRecord(_Part):
    """A turn before the last one, in a record."""

    text: str
    thinking: str | None = None
    calls: list[_Call] = []
    reply: list[_Message] = []

    def turn(self) -> Turn:
        """Returns the turn, without its tokens, which a record does not hold."""
        return Turn(
            text=self.text,
            end=0,
            reply=tuple(one.model_dump(exclude_none=True) for one in self.reply),
            reply_ids=(),
            calls=tuple(
                ToolCall(name=one.name, arguments=one.arguments, error=one.error) for one in self.calls
            ),
            thinking=self.thinking or "",
        )


_ENDS = {
    "length": "cut off at a limit on tokens",
    "turns": "cut off at the limit on turns",
    "seconds": "cut off at the limit on seconds",
    "failed": "the environment failed",
}
_TURNS = TypeAdapter(list[TurnRecord])


def turn_records(rollout: Rollout) -> list[dict[str, Any]]:
    """Returns the turns before the last one as JSON objects, in valid Unicode.

    `tokens` and `reply_tokens` are numbers of tokens. Arguments of a call are JSON in a text, as in OpenAI's
    interface, since their types differ from call to call.
    """
    return [
        {
            "text": valid(turn.text),
            "thinking": valid(turn.thinking),
            "tokens": len(part),
            "thinking_tokens": turn.thinking_tokens,
            "calls": [
                {
                    "name": valid(one.name),
                    "arguments": valid(json.dumps(one.arguments, ensure_ascii=False)),
                    "error": one.error,
                }
                for one in turn.calls
            ],
            "reply": [
                {key: valid(said) if isinstance(said, str) else said for key, said in one.items()}
                for one in turn.reply
            ],
            "reply_tokens": len(turn.reply_ids),
        }
        for turn, (part, _) in zip(rollout.turns, rollout.parts, strict=False)
    ]


def recorded_turns(record: Mapping[str, Any], place: str = "a record") -> tuple[Turn, ...]:
    """Returns the turns before the last one of a recorded answer, without their tokens.

    Args:
        record: The record; one without turns is an answer in one turn.
        place: The file and line, for messages.

    Raises:
        DataError: a field is missing or has another type; names the place and the field.
    """
    try:
        return tuple(one.turn() for one in _TURNS.validate_python(record.get("turns") or []))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, ("turns", *first["loc"])))
        raise DataError(f"{place}: expected turns as a run records them; {field}: {first['msg']}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a draft and its revision say in one part."""

    label: str
    """"turn 1", "reply 1", ..., "last turn"; "" if both are answers in one turn."""
    before: str
    """What the draft says; "" if it has no such part."""
    after: str


def side_by_side(draft: tuple[Sequence[Turn], str], answer: tuple[Sequence[Turn], str]) -> list[Said]:
    """Returns draft and revision turn by turn, and their last turns beside each other.

    Args:
        draft: Turns and text of the draft.
        answer: Turns and text of the revision.
    """
    rows = zip_longest(spoken(draft[0]), spoken(answer[0]))
    found = [
        Said(
            label=(after or before or ("",))[0],
            before=before[1] if before else "",
            after=after[1] if after else "",
        )
        for before, after in rows
    ]
    return [*found, Said(label=last_turn(found), before=draft[1], after=answer[1])]


def last_turn(parts: Sequence[object]) -> str:
    """Returns what the answer itself is called, which came after these parts."""
    return "last turn" if parts else ""


def spoken(turns: Sequence[Turn]) -> Iterator[tuple[str, str]]:
    """Yields ("turn 1", its text), ("reply 1", the messages and the calls that failed), and so on."""
    for number, turn in enumerate(turns, 1):
        yield f"turn {number}", turn.text
        failed = [f"{one.name or 'a call'} failed: {one.error}" for one in turn.calls if one.error]
        yield f"reply {number}", "\n".join([*failed, transcribed(turn.replied)])


def episode_facts(turns: Sequence[Turn], finish_reason: str) -> str:
    """Returns the size of an episode and what ended it, if not itself; "" for an answer in one turn.

    >>> turn = Turn(text="", end=1, reply=(), reply_ids=(), calls=(ToolCall(name="f", error="raised"),))
    >>> episode_facts([turn], "turns")
    '2 turns, 1 call (1 failed), cut off at the limit on turns'
    """
    parts = []
    if turns:
        calls = [call for turn in turns for call in turn.calls]
        failed = sum(bool(call.error) for call in calls)
        made = f"{len(calls)} call{'s' * (len(calls) != 1)}" + (f" ({failed} failed)" if failed else "")
        parts = [f"{len(turns) + 1} turns", *([made] if calls else [])]
    if turns or finish_reason != "length":  # an answer in one turn may be cut off without any environment
        parts += filter(None, [_ENDS.get(finish_reason)])
    return ", ".join(parts)
