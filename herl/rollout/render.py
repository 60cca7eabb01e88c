"""Conversations -> prompt token ids, by the chat template: the only place where prompts become tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from herl.rollout.stages import Stages
from herl.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Returns the token ids of a conversation, ready for the assistant's turn, by the chat template."""
    ids = tokenizer.apply_chat_template(
        [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
    )
    return tuple(ids)


def reading_sample(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns a conversation as the policy reads it: another one under another tokenizer or chat template."""
    said = [{"role": role, "content": "Name 2 rivers!"} for role in ("user", "assistant", "user")]
    return list(render(tokenizer, said))


def render_all(
    stages: Stages, conversations: Mapping[str, Sequence[Message]]
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Renders each conversation once; returns those that fit and the number of those that do not."""
    rendered = {key: render(stages.tokenizer, messages) for key, messages in conversations.items()}
    fitting = {key: ids for key, ids in rendered.items() if len(ids) <= stages.plan.max_prompt_tokens}
    return fitting, len(rendered) - len(fitting)
