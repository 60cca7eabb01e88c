"""Renders conversations to token ids by the chat template: the only place where prompts become tokens.

Some templates write today's date into the prompt (Llama 3, Granite, SmolLM3). In a run it is the date of the
run's start (`Today`), which a checkpoint keeps: a run that is resumed a day later has the same prompts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from jinja2.exceptions import TemplateError

from herl.errors import ConfigError, DataError
from herl.prompt_text import control_tokens, defuse
from herl.types import Message, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Today:
    """The date and time that chat templates see: when the run started, in local time."""

    def __init__(self) -> None:
        self.started = datetime.now().replace(microsecond=0)

    def pin(self, started: str) -> None:
        """Sets the time, in ISO format, to that of an earlier process of the run."""
        self.started = datetime.fromisoformat(started)


FIXED = datetime(2000, 1, 1)
"""The time for whatever must be the same every day."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    today: datetime | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[int, ...]:
    """Returns the token ids of a conversation up to the start of the assistant's turn.

    Args:
        tokenizer: The tokenizer, with its chat template.
        messages: The conversation.
        today: The time that the template sees; None for the current time.
        tools: The tools that it shows (`herl.types.Task.tools`).

    Raises:
        DataError: the template refuses the conversation, e.g. its system message; quotes the template.
    """
    return tuple(_applied(tokenizer, messages, today, tools, tokenize=True))


def render_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    today: datetime | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Returns what `render` makes tokens of, as text."""
    return str(_applied(tokenizer, messages, today, tools, tokenize=False))


def _applied(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    today: datetime | None,
    tools: Sequence[Mapping[str, Any]],
    *,
    tokenize: bool,
) -> Any:
    more: dict[str, Any] = (
        {} if today is None or not tells_time(tokenizer) else {"strftime_now": today.strftime}
    )
    if tools:
        more["tools"] = [dict(tool) for tool in tools]
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            return_dict=False,
            tokenize=tokenize,
            **more,
        )
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"the model's chat template refuses the roles {roles}: {error}") from error


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, task: Task, today: datetime | None = None
) -> tuple[int, ...]:
    """Returns the token ids of a task's prompt.

    Raises:
        DataError: the template refuses it; names the task.
    """
    try:
        return render(tokenizer, task.messages, today, task.tools)
    except DataError as error:
        raise DataError(f"prompt '{task.id}': {error}") from error.__cause__


def render_revision(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], task: Task, today: datetime | None = None
) -> tuple[int, ...]:
    """Returns the token ids of a revision prompt, in which material cannot become a control token.

    Messages of the task itself are rendered as in its plain prompt. In all others, which hold drafts,
    criteria and the request, a spelled-out control token of the tokenizer gets an invisible character.

    Raises:
        DataError: the template refuses it; names the task.
    """
    guarded = [message if message in task.messages else defused(tokenizer, message) for message in messages]
    try:
        return render(tokenizer, guarded, today, task.tools)
    except DataError as error:
        raise DataError(f"the revision prompt of '{task.id}': {error}") from error.__cause__


def defused(tokenizer: PreTrainedTokenizerBase, message: Message) -> Message:
    """Returns a message in which no text holds a control token (`herl.prompt_text.defuse`)."""
    tokens = control_tokens(tokenizer)
    return {key: defuse(text, tokens) for key, text in message.items()}


def set_template_variables(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any]) -> None:
    """Gives variables of the chat template other defaults, such as enable_thinking=false (Qwen3).

    The template itself is changed, so that all prompts, the checkpoint's comparison of templates and an
    exported model have the same. What a caller of the template passes still wins.

    Args:
        tokenizer: The tokenizer, whose template is changed.
        values: By name: texts, numbers, true, false, null, and lists and mappings of them.

    Raises:
        ConfigError: the template has no such variable.
    """
    template = tokenizer.chat_template
    for name in values:
        if not isinstance(template, str) or not re.search(rf"\b{re.escape(name)}\b", template):
            raise ConfigError(
                f"model.chat_template_kwargs: expected variables of the model's chat template, got '{name}', "
                "which it does not read"
            )
    settings = (
        f"{{%- set {name} = {name} if {name} is defined else {value!r} +%}}" for name, value in values.items()
    )
    tokenizer.chat_template = "".join(settings) + cast(str, template)


def tells_time(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes the date into prompts."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", ""))


def reading_sample(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the token ids of a fixed conversation at a fixed time, which identify the tokenizer and chat
    template. Of conversations that some templates refuse, it is the first that this one accepts."""
    for roles in (("user", "assistant", "user"), ("user",), ("system", "user")):
        try:
            messages = [{"role": role, "content": "Name 2 rivers!"} for role in roles]
            return list(render(tokenizer, messages, FIXED))
        except DataError:
            continue
    return list(tokenizer.encode(str(tokenizer.chat_template)))
