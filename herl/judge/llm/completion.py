"""An endpoint's chat completion -> `ChatReply`, in the variants that endpoints send."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from herl.errors import JudgeError
from herl.judge.llm.chat import ChatReply

CUT_OFF = {"length", "max_tokens", "model_length", "max_output_tokens"}
WITHHELD = {"content_filter", "safety", "recitation", "refusal", "blocklist", "prohibited_content"}


def read_completion(reply: Any) -> ChatReply:
    """Returns a completion's text, whether it is complete, and its tokens; the cost is left at 0.

    The content may be text, null, a list of parts, or JSON that has been parsed. If it is empty, the text is
    the reasoning: some servers file a reply without thinking there.

    Raises:
        LookupError, TypeError, AttributeError: it is not a chat completion.
        JudgeError: the endpoint broke off.
    """
    choice = reply["choices"][0]
    ended = str(choice.get("finish_reason") or "").lower()
    if ended == "error" or (choice.get("error") and not choice.get("message")):
        raise JudgeError("the endpoint broke off its reply", "server", retry=True)
    message = choice["message"]
    text = _text(message.get("content"))
    if not text.strip():
        text = _text(message.get("reasoning_content") or message.get("reasoning"))
    refusal = message.get("refusal") or _refused_part(message.get("content"))
    if not refusal and ended in WITHHELD:
        refusal = ended.replace("_", " ")
    usage = reply.get("usage")
    return ChatReply(
        text=text,
        refusal=str(refusal) if refusal else "",
        cut_off=ended in CUT_OFF,
        prompt_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        completion_tokens=_count(usage, "completion_tokens", "output_tokens"),
    )


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return json.dumps(content)
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else _part(part) for part in content]
        return "".join(parts)
    return ""


def _part(part: Any) -> str:
    """The text of a part; a part of another type, such as thinking, has none."""
    shown = isinstance(part, Mapping) and part.get("type", "text") in ("text", "output_text")
    return part["text"] if shown and isinstance(part.get("text"), str) else ""


def _refused_part(content: Any) -> Any:
    parts = content if isinstance(content, list) else []
    return next((part.get("refusal") for part in parts if isinstance(part, Mapping)), None)


def _count(usage: Any, *names: str) -> int:
    """A number of tokens; 0 if it is missing, null or no count."""
    values = [usage.get(name) for name in names] if isinstance(usage, Mapping) else []
    for value in values:
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if isinstance(value, int | float) and math.isfinite(value) and value > 0:
            return int(value)
    return 0
