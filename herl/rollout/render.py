"""Renders conversations to token ids by the chat template: the only place where prompts become tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from herl.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Returns the token ids of a conversation up to the start of the assistant's turn."""
    ids = tokenizer.apply_chat_template(
        [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
    )
    return tuple(ids)


def reading_sample(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the token ids of a fixed conversation, which identify the tokenizer and chat template."""
    messages = [{"role": role, "content": "Name 2 rivers!"} for role in ("user", "assistant", "user")]
    return list(render(tokenizer, messages))
