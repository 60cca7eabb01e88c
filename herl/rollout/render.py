"""Renders conversations to token ids by the chat template: the only place where prompts become tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from herl.prompt_text import control_tokens, defuse
from herl.types import Message, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Returns the token ids of a conversation up to the start of the assistant's turn."""
    ids = tokenizer.apply_chat_template(
        [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
    )
    return tuple(ids)


def render_revision(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], task: Task
) -> tuple[int, ...]:
    """Returns the token ids of a revision prompt, in which material cannot become a control token.

    Messages of the task itself are rendered as in its plain prompt. In all others, which hold drafts,
    criteria and the request, a spelled-out control token of the tokenizer gets an invisible character.
    """
    tokens = control_tokens(tokenizer)
    guarded = [
        message if message in task.messages else {**message, "content": defuse(message["content"], tokens)}
        for message in messages
    ]
    return render(tokenizer, guarded)


def reading_sample(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the token ids of a fixed conversation, which identify the tokenizer and chat template."""
    messages = [{"role": role, "content": "Name 2 rivers!"} for role in ("user", "assistant", "user")]
    return list(render(tokenizer, messages))
