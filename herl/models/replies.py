"""Renders replies of an environment to token ids that follow an answer's own, which are never rendered again.

A reply is what the chat template writes between one turn of the assistant and the next:

    sampled                     the reply's tokens                               sampled
    Let me look it up.<|im_end|>  \\n<|im_start|>user\\n42<|im_end|>\\n<|im_start|>assistant\\n  It is 42.

That needs a template that leaves earlier turns unchanged. Some take thinking out of them, or an empty
thinking block: what the model reads would then differ from what the template would show it, and
`check_append_only` refuses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise, product
from typing import TYPE_CHECKING

from herl.errors import ConfigError, DataError
from herl.models.chat_template import FIXED, render_text
from herl.prompt_text import control_tokens, defuse
from herl.types import Message, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPOKEN, _THOUGHT = "herl-probe", "herl-thought"
"""Stand for the assistant's words. No template changes them."""
_BEFORE_END = 3
"""Tokens that a template may write before the end token, such as a newline, and that the policy left out."""


def render_reply(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    reply: Sequence[Message],
    last_token: int,
    today: datetime | None = None,
) -> tuple[int, ...]:
    """Returns the tokens from the end of an answer to the start of the assistant's next turn.

    In the reply, a spelled-out control token of the tokenizer gets an invisible character.

    Args:
        tokenizer: The tokenizer, with its chat template.
        task: What the conversation began with. What was said since does not matter
            (`check_append_only`).
        reply: The messages.
        last_token: The answer's last token. If it is the one that ends a turn, it is not repeated.
        today: The time that the template sees; None for the current time.

    Raises:
        DataError: the template refuses the reply, e.g. its role.
    """
    tokens = control_tokens(tokenizer)
    guarded = [{key: defuse(text, tokens) for key, text in message.items()} for message in reply]
    spoken = _absent_from([*task.messages, *guarded, *task.tools])
    text = render_text(tokenizer, [*task.messages, _said(spoken), *guarded], today, task.tools)
    if spoken not in text:
        raise DataError(
            f"task '{task.id}': the model's chat template leaves out what the assistant said before "
            f"{_roles(reply)} replies"
        )
    ids = tokenizer.encode(text.rpartition(spoken)[2], add_special_tokens=False)
    if str(tokenizer.convert_ids_to_tokens(last_token)) not in tokens:
        return tuple(ids)  # a stop string ended the answer
    ended = next((place for place, one in enumerate(ids[: _BEFORE_END + 1]) if one == last_token), -1)
    return tuple(ids[ended + 1 :])


def _absent_from(shown: Sequence[object]) -> str:
    """Returns words for the assistant that stand nowhere else."""
    spoken, others = _SPOKEN, str(shown)
    while spoken in others:
        spoken += "-x"
    return spoken


def check_append_only(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    roles: Sequence[str],
    thinking: Sequence[tuple[str, str]] = (),
) -> None:
    """Checks that the template writes what was said before in the same way, whatever is said later.

    Args:
        tokenizer: The tokenizer, with its chat template.
        task: A task with the messages and tools that its conversation begins with.
        roles: Roles of the environment's replies.
        thinking: Opening and closing tags of thinking that the template knows.

    Raises:
        ConfigError: it does not, or it refuses such replies.
    """
    thoughts = [f"{start}\n{_THOUGHT}\n{end}\n\n" for start, end in thinking]
    prompt = render_text(tokenizer, task.messages, FIXED, task.tools).rstrip()
    always = any(prompt.endswith(start) for start, _ in thinking)
    for role, thought in product(roles, thoughts if always else ["", *thoughts]):
        shown = _growing(tokenizer, task, role, f"{thought}{_SPOKEN}")
        for before, after in pairwise(shown):
            added = after.removeprefix(before).partition(_SPOKEN)[0]
            if not after.startswith(before):
                what = _first_difference(before, after)
            elif thought and _THOUGHT not in added:
                what = "takes the thinking out of earlier turns"
            else:
                continue
            raise ConfigError(
                f"environment: expected a model whose chat template leaves earlier turns unchanged, since "
                f"what was sampled is never rendered again; this one {what}. Use another template or other "
                "model.chat_template_kwargs, or environment.keep_turns=true, which shows the model its "
                "earlier turns as it wrote them"
            )


def _growing(tokenizer: PreTrainedTokenizerBase, task: Task, role: str, said: str) -> list[str]:
    """A conversation as the template shows it before its first, second and third answer."""
    named = {"name": "herl", "tool_call_id": "000000000"} if role == "tool" else {}
    reply = {"role": role, "content": "2"} | named
    turns: list[Message] = [*task.messages]
    shown: list[str] = []
    for _ in range(3):
        try:
            shown.append(render_text(tokenizer, turns, FIXED, task.tools))
        except DataError as error:
            raise ConfigError(
                f"environment: expected a model whose chat template takes replies of the role {role}, got "
                f"one that does not: {error}"
            ) from error
        turns += [_said(said), reply]
    return shown


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _roles(reply: Sequence[Message]) -> str:
    return " and ".join(dict.fromkeys(message["role"] for message in reply))


def _first_difference(before: str, after: str) -> str:
    place = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
    start = max(0, place - 20)
    return f"writes {after[start : place + 30]!r} for what was {before[start : place + 30]!r}"
