"""Reads calls of tools in what a policy wrote, in the formats that models are trained on.

    hermes   <tool_call>{"name": "lookup", "arguments": {"key": "otter"}}</tool_call>     Qwen, SmolLM, Hermes
    json     {"name": "lookup", "parameters": {"key": "otter"}}                           Llama
    mistral  [TOOL_CALLS][{"name": "lookup", "arguments": {"key": "otter"}}]              Mistral
             [TOOL_CALLS]lookup[ARGS]{"key": "otter"}
    xml      <tool_call><function=lookup><parameter=key>otter</parameter></function></tool_call>   Qwen-Coder
    response_template    as the tokenizer's own response template says

The last two are read by transformers. Several calls may follow each other. What only looks like a call is one
without a name and with a `problem`, which the policy reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from herl.prompt_text import valid

Format = Literal["hermes", "json", "mistral", "xml", "response_template"]
XML: Mapping[str, Any] = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"<tool_call>\s*<function=(?P<name>[^>\s]+)>",
            "close_pattern": r"</function>\s*</tool_call>|\Z",
            "repeats": True,
            "optional": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": r"<parameter=(?P<key>[^>\s]+)>\n?(?P<value>.*?)\n?"
                r"(?:</parameter>|(?=<parameter=)|\Z)"
            },
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        }
    },
}
"""The response template of `xml`."""
_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\]([\w-]*))?(?:\[ARGS\])?\s*(?=\{)")
_LOOKS_LIKE_A_CALL = re.compile(r'"name"\s*:')
_MARK = "[TOOL_CALLS]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call as it was written."""

    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    """Given by the policy, if its format has one."""
    problem: str = ""
    """Why it cannot be read: "" if it can."""


def read_calls(
    text: str,
    raw: str,
    style: Format,
    tools: Sequence[Mapping[str, Any]] = (),
    template: Mapping[str, Any] | None = None,
) -> list[Call]:
    """Returns the calls in an answer, in order; none if it is a final answer.

    Args:
        text: The answer without special tokens.
        raw: The answer with them.
        style: The format.
        tools: The tools as chat templates take them. Arguments that are text by their format, but of another
            type by the schema, are converted.
        template: The tokenizer's response template.

    >>> [call] = read_calls('<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', "", "hermes")
    >>> call.name, call.arguments
    ('f', {'x': 1})
    """
    if style == "hermes":
        source = text if "<tool_call>" in text else raw  # it is a special token of some tokenizers
        return [_read(one[1]) for one in _HERMES.finditer(source)]
    if style == "xml":
        calls = _parsed(text if "<tool_call>" in text else raw, XML, tools)
        if not calls and "<tool_call>" in raw:
            return [Call(problem="it has no <function=name> after <tool_call>")]
        return calls
    if style == "response_template":
        return _parsed(raw, template or {}, tools)
    if style == "mistral":
        _, *parts = (text if _MARK in text else raw).split(_MARK)
        return [call for part in parts for call in _mistral(part)]
    return list(_bare(text))


def _parsed(text: str, template: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> list[Call]:
    """The calls that transformers finds."""
    from transformers.utils.chat_parsing import parse_response

    try:
        found = parse_response(text, dict(template), prefix="", tools=[dict(tool) for tool in tools])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return [Call(problem=str(error).splitlines()[0])]
    return [_call(_sound(one)) for one in found.get("tool_calls", ())]


def _read(text: str) -> Call:
    """The one call in a text."""
    try:
        found = _loads(text)
    except _UnreadableError as error:
        return Call(problem=str(error))
    return _call(found)


def _bare(text: str) -> Iterator[Call]:
    text = text.strip()
    while text.startswith("{"):
        try:
            found, end = _first(text)
        except _UnreadableError as error:
            if _LOOKS_LIKE_A_CALL.search(text):
                yield Call(problem=str(error))
            return
        if (
            not isinstance(found, dict)
            or "name" not in found
            or not {"parameters", "arguments"} & found.keys()
        ):
            return  # an answer that is JSON
        yield _call(found)
        text = text[end:].lstrip(" \t\r\n;,")


def _mistral(text: str) -> Iterator[Call]:
    named = _NAMED.match(text)
    try:
        found, _ = _first(text[named.end() :] if named else text.lstrip())
    except _UnreadableError as error:
        yield Call(problem=str(error))
        return
    if named:
        yield _call({"name": named[1], "id": named[2] or "", "arguments": found})
        return
    for one in found if isinstance(found, list) else [found]:
        yield _call(one)


def _call(found: Any) -> Call:
    if isinstance(found, dict) and isinstance(inner := found.get("function"), dict):
        found = {**inner, "id": found.get("id", "")}
    if not isinstance(found, dict) or not isinstance(name := found.get("name"), str) or not name:
        return Call(problem='a call is an object with "name" and "arguments"')
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):  # some models write them as a text
        try:
            arguments = _loads(arguments)
        except _UnreadableError as error:
            return Call(problem=f"its arguments: {error}")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return Call(problem="its arguments are no object")
    given = found.get("id")
    return Call(name=name, arguments=arguments, id=given if isinstance(given, str) else "")


class _UnreadableError(Exception):
    """It is no JSON."""


def _loads(text: str) -> Any:
    found, end = _first(text.strip())
    if rest := text.strip()[end:]:
        raise _UnreadableError(f"there is more after its end: {rest[:40]!r}")
    return found


def _first(text: str) -> tuple[Any, int]:
    """The value that a text begins with, and where it ends."""
    try:
        found, end = _DECODER.raw_decode(text)
        return _sound(found), end
    except json.JSONDecodeError as error:
        raise _UnreadableError(f"{error.msg} at character {error.pos}") from error
    except ValueError as error:  # a number of thousands of digits, or none
        raise _UnreadableError(str(error)) from error
    except RecursionError:
        raise _UnreadableError("it is nested too deeply") from None


def _sound(found: Any) -> Any:
    """Without halves of surrogate pairs, which no file can hold."""
    return json.loads(valid(json.dumps(found, ensure_ascii=False)))


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)
