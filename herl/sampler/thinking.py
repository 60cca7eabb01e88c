"""Splits a sampled answer into thinking and answer, by token ids and by what the template put in front.

Tags that are single tokens vanish when an answer is decoded, so the split works on ids; a tag that
such a tokenizer reads as several tokens is text. Only tokenizers without the tag spell it out, and for
those it is looked for in the decoded text. A pair of tags counts if the tokenizer or the chat template
knows it, or if the prompt ends with its opening tag.

    prompt ends with <think>      thinking is open from the first token
    prompt ends with </think>     the template closed it; only an answer that opens it again is split
    answer begins with <think>    thinking is open
    later tags                    are text of the answer
    </think> without <think>      everything before it was thinking

Models with channels (gpt-oss) answer in the channel `final`; all other channels are thinking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAIRS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, SmolLM3, GLM, MiniMax, OLMo, Phi-4, Nemotron
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|channel>", "<channel|>"),  # Gemma 4
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<longcat_think>", "</longcat_think>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
)
"""Opening and closing tags of public models."""
_CHANNEL = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")
_TAIL_TOKENS = 64
"""Tokens at the end of a prompt that are looked at."""
_PROBE = "herl-probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """An answer in two parts."""

    text: str
    """The answer; empty if there was never one."""
    thinking: str = ""
    thinking_tokens: int = 0
    """Tokens up to and including the end of thinking."""
    has_answer: bool = True
    """False if thinking never ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """A pair of tags, with their ids if the tokenizer has both as single tokens."""

    start: str
    end: str
    ids: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What a tokenizer and its chat template know about thinking."""

    tags: tuple[Tags, ...] = ()
    channel_ids: tuple[int, ...] = ()
    """Ids of <|channel|>, <|message|>, <|start|> and <|end|>; empty without channels."""
    opened_by: tuple[str, str] = ("", "")
    """The template's head of an answer, and the opening tag that it ends with, if it does."""


def split(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> Split:
    """Returns the answer and the thinking before it, both without special tokens."""
    known = knowledge(tokenizer)
    if known.channel_ids:
        opened = list(prompt_ids[-_TAIL_TOKENS:])
        opened = opened[_last(opened, known.channel_ids[2]) :]
        if known.channel_ids[0] in (*opened, *token_ids):
            return _by_channel(tokenizer, opened, token_ids, known.channel_ids)
    tail = _decoded(tokenizer, prompt_ids[-_TAIL_TOKENS:], whole=True).rstrip()
    tags_of = {tags.start: tags for tags in known.tags}
    for start, end in PAIRS:  # a prompt that ends with an opening tag is enough
        if tail.endswith(start):
            tags_of.setdefault(start, Tags(start=start, end=end, ids=_ids(tokenizer, start, end)))
    for tags in tags_of.values():
        parted = _parted(tokenizer, token_ids, tags, _state(tail, tags, known))
        if parted is not None:
            return parted
    return Split(text=_decoded(tokenizer, token_ids))


def knowledge(tokenizer: PreTrainedTokenizerBase) -> Knowledge:
    """Returns what the tokenizer and its present chat template know about thinking."""
    return _knowledge(tokenizer, str(tokenizer.chat_template or ""), len(tokenizer))


@lru_cache(maxsize=8)
def _knowledge(tokenizer: PreTrainedTokenizerBase, template: str, size: int) -> Knowledge:
    found = []
    for start, end in PAIRS:
        ids = _ids(tokenizer, start, end)
        if ids is not None or start in template or end in template:
            found.append(Tags(start=start, end=end, ids=ids))
    channel_ids = tuple(one for token in _CHANNEL if (one := _id(tokenizer, token)) is not None)
    head = _head(tokenizer) if any(tags.start in template for tags in found) else ""
    opened = next((tags.start for tags in found if head.endswith(tags.start)), "")
    return Knowledge(
        tags=tuple(found),
        channel_ids=channel_ids if len(channel_ids) == len(_CHANNEL) else (),
        opened_by=(head.removesuffix(opened).rstrip() if opened else "", opened),
    )


def _head(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes after the last message. A template that refuses the probe shows none."""
    try:
        shown = tokenizer.apply_chat_template(
            [{"role": "user", "content": _PROBE}], add_generation_prompt=True, tokenize=False
        )
    except TemplateError:
        return ""
    return str(shown).rpartition(_PROBE)[2].rstrip()


def _state(tail: str, tags: Tags, known: Knowledge) -> bool | None:
    """Whether thinking is open when the answer begins; None if the prompt does not say."""
    if tail.endswith(tags.start):
        return True
    if tail.endswith(tags.end):
        return False
    head, start = known.opened_by
    if start == tags.start and head.strip() not in tail:
        return True  # the prompt was made without the template, which would have opened thinking
    return None


def _parted(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], tags: Tags, is_open: bool | None
) -> Split | None:
    """Returns the parts; None if there is no thinking between these tags."""
    if tags.ids is not None:
        return _by_ids(tokenizer, list(token_ids), *tags.ids, is_open)
    return _by_text(tokenizer, list(token_ids), tags, is_open)


def _by_ids(
    tokenizer: PreTrainedTokenizerBase, token_ids: list[int], start: int, end: int, is_open: bool | None
) -> Split | None:
    """Only the thinking at the beginning is split off: an answer may speak of the tags."""
    tags = [token for token in token_ids if token in (start, end)]
    begun = _next(tokenizer, token_ids, 0) == start
    never_opened = is_open is None and tags[:1] == [end]  # the first tag closes what no tag has opened
    if not (is_open or begun or never_opened):
        return None
    thinking: list[int] = []
    for place, token in enumerate(token_ids):
        if token == end and (start != end or place or is_open):
            if _next(tokenizer, token_ids, place + 1) == start != end:
                continue  # it goes on thinking
            return Split(
                text=_decoded(tokenizer, token_ids[place + 1 :]).lstrip(),
                thinking=_decoded(tokenizer, thinking).strip(),
                thinking_tokens=place + 1,
            )
        if token not in (start, end):
            thinking.append(token)
    return Split(
        text="",
        thinking=_decoded(tokenizer, thinking).strip(),
        thinking_tokens=len(token_ids),
        has_answer=False,
    )


def _next(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], place: int) -> int | None:
    """The first token from a place on that is more than white space."""
    for token in token_ids[place:]:
        if _decoded(tokenizer, [token], whole=True).strip():
            return token
    return None


def _by_text(
    tokenizer: PreTrainedTokenizerBase, token_ids: list[int], tags: Tags, is_open: bool | None
) -> Split | None:
    text = _decoded(tokenizer, token_ids)
    inside = is_open
    thinking: list[str] = []
    used = 0
    while True:
        begun = text.lstrip().startswith(tags.start)
        if not begun and not inside and (inside is False or tags.end not in text):
            break
        before, found, after = text.partition(tags.end)
        thinking.append(before.lstrip().removeprefix(tags.start).strip())
        if not found:
            return Split(
                text="",
                thinking="\n".join(filter(None, thinking)),
                thinking_tokens=len(token_ids),
                has_answer=False,
            )
        used += 1
        text, inside = after.lstrip(), False
    if not used:
        return None
    return Split(
        text=text,
        thinking="\n".join(filter(None, thinking)),
        thinking_tokens=_completes(tokenizer, token_ids, tags.end, used),
    )


def _completes(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], tag: str, times: int) -> int:
    """Returns the number of tokens after which a tag has been written this often."""
    low, high = 1, len(token_ids)
    while low < high:
        middle = (low + high) // 2
        if _decoded(tokenizer, token_ids[:middle]).count(tag) >= times:
            high = middle
        else:
            low = middle + 1
    return low


def _by_channel(
    tokenizer: PreTrainedTokenizerBase,
    opened: Sequence[int],
    token_ids: Sequence[int],
    channel_ids: Sequence[int],
) -> Split:
    """Splits <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...

    `opened` is what the prompt has of the first message, from its <|start|>.
    """
    channel, message, start, end = channel_ids
    parts: dict[bool, list[int]] = {False: [], True: []}  # by whether it is the answer
    name: list[int] = []
    place, final, ended = "head", False, False
    for index, token in enumerate((*opened, *token_ids)):
        if token in (channel, start, end):
            place = "name" if token == channel else "head"
            name = []
        elif token == message:
            final = _decoded(tokenizer, name).strip().startswith("final")
            ended = ended or final
            place = "body"
        elif place == "name":
            name.append(token)
        elif place == "body" and index >= len(opened):
            parts[final].append(token)
    answer = parts[True]
    return Split(
        text=_decoded(tokenizer, answer),
        thinking=_decoded(tokenizer, parts[False]).strip(),
        thinking_tokens=len(token_ids) - len(answer),
        has_answer=ended,
    )


def _last(ids: Sequence[int], token: int) -> int:
    """The place of a token's last occurrence; the end if it does not occur."""
    places = [place for place, one in enumerate(ids) if one == token]
    return places[-1] if places else len(ids)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, whole: bool = False) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=not whole))


def _ids(tokenizer: PreTrainedTokenizerBase, start: str, end: str) -> tuple[int, int] | None:
    ids = _id(tokenizer, start), _id(tokenizer, end)
    return (ids[0], ids[1]) if ids[0] is not None and ids[1] is not None else None


def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    """The id of a token that the tokenizer never splits; None if it has none."""
    found = tokenizer.get_added_vocab().get(token)
    return None if found is None else int(found)
