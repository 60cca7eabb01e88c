"""How tools are shown to a policy, how it calls them, and how it reads their replies.

All three follow the model's chat template, and otherwise a system message that spells the format out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from herl import prompt_text
from herl.environment import Opening
from herl.environment.calls import Call, Format, read_calls
from herl.errors import ConfigError, DataError
from herl.models.chat_template import FIXED, render_text
from herl.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Schemas = Sequence[Mapping[str, Any]]
"""Tools as chat templates take them (`herl.types.Task.tools`)."""
_PROBE: list[Message] = [{"role": "user", "content": "herl-probe"}]
_MARKS: tuple[tuple[str, Format], ...] = (
    ("<function=", "xml"), ("<tool_call>", "hermes"), ("[TOOL_CALLS]", "mistral")
)  # fmt: skip
"""Found in a chat template -> how its model writes calls. The first one decides."""
_MARKS_OF_JSON: tuple[tuple[str, Format], ...] = (
    ("<|python_tag|>", "json"),
    ("Environment: ipython", "json"),
)
_EXAMPLES: dict[Format, str] = {
    "hermes": '<tool_call>\n{"name": "the name of the tool", "arguments": {"its argument": "a value"}}\n'
    "</tool_call>",
    "json": '{"name": "the name of the tool", "parameters": {"its argument": "a value"}}',
    "mistral": '[TOOL_CALLS][{"name": "the name of the tool", "arguments": {"its argument": "a value"}}]',
    "xml": "<tool_call>\n<function=the name of the tool>\n<parameter=its argument>\na value\n</parameter>\n"
    "</function>\n</tool_call>",
}


class CallStyle:
    """A policy's way with tools.

    Args:
        format: How it writes calls (`herl.environment.calls`); `auto` for the way of its chat template, and
            `hermes` if that shows no tools.
        show: What shows it the tools: its chat `template`, or a `prompt` in the system message; `auto` for
            the template, if that shows tools.
    """

    role: Literal["tool", "user"] = "tool"
    """Who tells it what a tool replied: `user` if its chat template leaves out messages of tools."""

    def __init__(
        self,
        format: Literal["auto", "hermes", "json", "mistral", "xml", "response_template"] = "auto",
        show: Literal["auto", "template", "prompt"] = "auto",
    ) -> None:
        self._wanted_format, self._wanted_show = format, show
        self._format: Format = "hermes" if format == "auto" else format
        self._in_prompt = show == "prompt"
        self._takes_system = True
        self._response_template: dict[str, Any] | None = None

    def prepare(self, tokenizer: PreTrainedTokenizerBase, schemas: Schemas) -> None:
        """Finds out what the model's chat template knows of tools.

        Raises:
            ConfigError: it does not show tools, or nobody knows how its model writes calls.
        """
        template = str(tokenizer.chat_template)
        shows = _rendered(tokenizer, _PROBE, schemas) not in (None, _rendered(tokenizer, _PROBE))
        if self._wanted_show == "template" and not shows:
            raise ConfigError(
                "environment.show: expected a model whose chat template shows tools for show=template, got "
                "one that does not: use show=prompt"
            )
        self._in_prompt = self._wanted_show == "prompt" or not shows
        self._response_template = getattr(tokenizer, "response_template", None)
        self._format = self._format_of(template) if self._wanted_format == "auto" else self._wanted_format
        if self._format == "response_template" and (self._in_prompt or not self._response_template):
            raise ConfigError(
                "environment.format: response_template needs a tokenizer that has one, and a chat template "
                "that shows tools: use another format"
            )
        system: Message = {"role": "system", "content": "herl-system"}
        self._takes_system = "herl-system" in (_rendered(tokenizer, [system, *_PROBE]) or "")
        said: Message = {"role": "assistant", "content": "herl-said"}
        told = tool_message("herl", "herl-reply", "000000000")
        shown = () if self._in_prompt else schemas
        takes_tool = "herl-reply" in (_rendered(tokenizer, [*_PROBE, said, told], shown) or "")
        self.role = "tool" if takes_tool else "user"

    def _format_of(self, template: str) -> Format:
        if self._in_prompt:
            return next((style for mark, style in _MARKS if mark in template), "hermes")
        if "tool_calls" in (self._response_template or {}).get("fields", {}):
            return "response_template"
        for mark, style in (*_MARKS, *_MARKS_OF_JSON):
            if mark in template:
                return style
        raise ConfigError(
            "environment.format: the model's chat template shows tools, but says nothing that herl knows of "
            "how they are called. Expected hermes, json, mistral or xml, or show=prompt, which spells the "
            "format out, got auto"
        )

    def opening(self, messages: Sequence[Message], schemas: Schemas) -> Opening:
        """Returns a prompt with these tools, which the template or a system message shows."""
        if not self._in_prompt or not schemas:
            return Opening(messages=messages, tools=schemas)
        tools = "\n".join(json.dumps(one["function"], ensure_ascii=False) for one in schemas)
        template = prompt_text.load("herl.environment", "show_tools.txt")
        text = prompt_text.fill(template, {"tools": tools, "call": _EXAMPLES[self._format]})
        first, *rest = messages
        role = "system" if self._takes_system else "user"
        if first["role"] == role:
            return Opening(messages=[{**first, "content": f"{first['content']}\n\n{text}"}, *rest])
        return Opening(messages=[{"role": role, "content": text}, *messages])

    def read(self, answer: str, raw: str, schemas: Schemas) -> list[Call]:
        """Returns the calls in an answer, without and with its special tokens; none if it is final."""
        return read_calls(answer, raw, self._format, schemas, self._response_template)

    def told(self, replies: Sequence[tuple[str, str, str]]) -> list[Message]:
        """Returns messages that tell the policy what tools replied.

        Args:
            replies: For each call the tool's name ("" for an unknown one), the reply, and the call's id.
        """
        if self.role == "tool":
            return [tool_message(*one) for one in replies]
        wrapper = prompt_text.load("herl.environment", "tool_reply.txt")
        texts = [
            prompt_text.fill(wrapper, {"name": name, "reply": text}) if name else text
            for name, text, _ in replies
        ]
        return [{"role": "user", "content": "\n\n".join(texts)}]


def tool_message(name: str, text: str, number: str) -> Message:
    """Returns a tool's message."""
    return {"role": "tool", **({"name": name} if name else {}), "tool_call_id": number, "content": text}


def call_numbers(calls: Sequence[Call], turn: int) -> list[str]:
    """Returns the ids of a turn's calls, all different: the policy's own, or of nine digits if a template
    would refuse those, or if two are the same."""
    made = [f"{turn:04d}{place:05d}" for place in range(len(calls))]
    numbers = [
        call.id if re.fullmatch(r"[A-Za-z0-9]{9}", call.id) else one
        for call, one in zip(calls, made, strict=True)
    ]
    return numbers if len(set(numbers)) == len(numbers) else made


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Schemas = ()
) -> str | None:
    try:
        return render_text(tokenizer, messages, FIXED, tools)
    except DataError:
        return None
