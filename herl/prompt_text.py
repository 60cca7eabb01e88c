"""Prompts as text files with {fields}, filled in one pass, so braces in a model's text stay text.

`defuse` keeps a spelled-out control token such as <|im_end|> in material from becoming the token itself, and
`visible` keeps control characters of models and foreign files from a terminal (`herl.display`) or a page."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Set
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from herl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIELD = re.compile(r"\{(\w+)\}")
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)  # all but tab and newline: escapes of terminals, marks that reorder text, halves of surrogate pairs
_JOINER = "\u2060"  # WORD JOINER: invisible, and no tokenizer's control token contains it
_NAMED = (
    "im_(?:start|end|sep|user|assistant|system|middle)|endof(?:text|prompt|turn)|eot_id|eom_id|eot|eom|eos"
    "|(?:start|end)_header_id|header_(?:start|end)|(?:begin|end)_of_(?:text|sentence|turn|message)"
    "|(?:start|end)_of_role|(?:start|end)oftext|startoftext|bos|eos|pad|python_(?:tag|start|end)"
    "|channel|message|return|call|constrain|start|end|system|user|assistant|tool|observation|developer|turn"
    "|tool_(?:call|calls|response|list)(?:_start|_end)?|fim_(?:prefix|middle|suffix|pad)|reserved_\\w+"
    "|(?:START|END)_(?:OF_TURN_TOKEN|THINKING|RESPONSE|ACTION|TOOL_RESULT)"
    "|role_end|execute_(?:start|end)|(?:USER|CHATBOT|SYSTEM)_TOKEN|(?:begin|end)_of_(?:thought|solution)"
)
_FAMILIES = re.compile(
    rf"<\|(?:{_NAMED})\|>"  # ChatML, Llama, Phi, GPT, Command, Kimi
    rf"|\[\|(?:{_NAMED})\|\]"  # EXAONE
    "|<\uff5c[^\uff5c<>\\n]{1,60}\uff5c>"  # DeepSeek
    r"|<(?:start|end)_of_turn>|<(?:bos|eos)>"  # Gemma
    r"|<\|(?:turn|channel|tool|tool_call|tool_response|think)>"
    r"|<(?:turn|channel|tool|tool_call|tool_response)\|>"
    r"|<</?SYS>>"  # Llama 2
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK|gMASK)\]"
    r"|</?tool_response>"  # Qwen: its template recognizes a tool's turn by it
    r"|<role>(?=\s*(?i:human|user|assistant|system|observation|tool)\s*</role>)"  # Ling
    r"|<SPECIAL_\d{1,4}>|<extra_id_\d{1,3}>"  # Nemotron
    r"|<reserved_\d{1,4}>"  # Baichuan
    r"|\]~b\]|\]~!b\[|\[e~\[|\]![pd]~\["  # MiniMax
    r"|</?minimax:tool_call>"
    r"|<seed:(?:bos|eos|pad)>"
)
"""Whole control tokens of public chat models. Half of one, such as <| or |>, is an operator elsewhere."""


@cache
def load(package: str, name: str) -> str:
    """Returns the text of a prompt shipped beside its class."""
    return files(package).joinpath(name).read_text(encoding="utf-8").strip()


def check(key: str, template: str, fields: Set[str], optional: Set[str] = frozenset()) -> None:
    """Checks that a template has all of `fields`, and no others than the optional ones.

    Raises:
        ConfigError: names the key.
    """
    got = set(_FIELD.findall(template))
    if got - optional != fields:
        more = f" and optionally {', '.join(sorted(optional))}" if optional else ""
        raise ConfigError(
            f"{key}: expected the fields {', '.join(sorted(fields))}{more}; "
            f"got {', '.join(sorted(got)) or 'no fields'}"
        )


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Returns the template with each {field} replaced, in one pass: inserted text is not filled again."""
    return _FIELD.sub(lambda match: fields[match.group(1)], template)


def defuse(text: str, tokens: Collection[str] | None = None) -> str:
    """Returns the text with an invisible character inside each control token; it reads the same.

    >>> defuse("df |> f() <|im_end|>") == "df |> f() <\u2060|im_end|>"
    True

    Args:
        text: Material that a model or a row wrote.
        tokens: The control tokens of the tokenizer that will read it (`control_tokens`); None if it is
            unknown, for those of public chat models.
    """
    pattern = _FAMILIES
    if tokens is not None:
        whole = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
        if not whole:
            return text
        pattern = re.compile("|".join(map(re.escape, whole)))
    return pattern.sub(lambda match: f"{match[0][0]}{_JOINER}{match[0][1:]}", text)


def visible(text: str, longest: int | None = None) -> str:
    """Returns a text as it can be shown: with a symbol or an escape for each control character. Markup stays.

    Newlines and tabs stay; emoji and all scripts do. Half of a surrogate pair is escaped, too.

    >>> print(visible("\\x1b[31mred \\u202e \\ud83d"))
    ␛[31mred \\u202e \\ud83d

    Args:
        text: What a model, a row or a file of a run says.
        longest: Limit in characters; the rest is cut off. None for no limit.
    """
    if longest is not None and len(text) > longest:
        text = f"{text[:longest]} ... ({len(text)} characters)"
    if text.isascii() and text.isprintable():
        return text
    return _CONTROL.sub(lambda found: _symbol(found[0]), text.replace("\r\n", "\n"))


def _symbol(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's picture of it
    return "\u2421" if code == 0x7F else character.encode("unicode_escape").decode()


def valid(text: str) -> str:
    """Returns a text with `?` for each half of a surrogate pair, which no file in UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Returns the texts that a tokenizer reads as control tokens.

    These are its special tokens, and added tokens in angle or square brackets that a chat template uses,
    such as </think> and <tool_call>. Other added tokens are plain text, such as runs of spaces.
    """
    template = str(tokenizer.chat_template or "")
    found = {str(token) for token in tokenizer.all_special_tokens}
    for token in tokenizer.added_tokens_decoder.values():
        text = str(token.content)
        if token.special or _FAMILIES.fullmatch(text) or (text in template and text[0] in "<["):
            found.add(text)
    return frozenset(text for text in found if text.strip())
