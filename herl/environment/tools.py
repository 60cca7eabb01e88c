"""An environment of tools: plain Python functions that the policy may call (environment=tools).

    # my_tools.py
    def lookup(animal: str, task) -> str:
        '''Looks an animal up in the house's table.

        Args:
            animal: Its name, in lower case.
        '''
        return task.meta["table"].get(animal, "not in the table")

    export HERL_ALLOW_TARGETS=my_tools
    herl fit data=my.jsonl model=... environment=tools environment.functions=[my_tools.lookup]

An answer with calls gets a message for each of them; an answer without a call ends the episode. Whatever goes
wrong with a call is such a message, too: it cannot be read, the tool is unknown, arguments are missing or of
a wrong type, the function raises, is late, ends its process, or returns what is neither text nor JSON. It is
recorded as `ToolCall.error`, and never ends the run.

A function that is named by its path is called in a process of its own (`herl.background.worker`), with a time
limit, as functions of judges are. A turn's calls are made one after the other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from herl import prompt_text
from herl.background.worker import shared
from herl.environment import Conversation, Environment, Opening, Reply
from herl.environment.calls import Call, Format, read_calls
from herl.environment.tool import Tool, ToolError, cut
from herl.errors import ConfigError, DataError, check_above, check_at_least, did_you_mean
from herl.models.chat_template import FIXED, render_text
from herl.targets import configured
from herl.types import Message, Task, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_PROBE: list[Message] = [{"role": "user", "content": "herl-probe"}]
_MARKS: tuple[tuple[str, Format], ...] = (("<tool_call>", "hermes"), ("[TOOL_CALLS]", "mistral"))
_EXAMPLES: dict[Format, str] = {
    "hermes": '<tool_call>\n{"name": "the name of the tool", "arguments": {"its argument": "a value"}}\n'
    "</tool_call>",
    "json": '{"name": "the name of the tool", "parameters": {"its argument": "a value"}}',
    "mistral": '[TOOL_CALLS][{"name": "the name of the tool", "arguments": {"its argument": "a value"}}]',
}


class ToolEnvironment(Environment):
    """Calls the functions that an answer asks for.

    Args:
        functions: The functions, or their paths such as "my_tools.lookup".
        timeout_seconds: Longest time of a call. None for no limit, with all calls in this process.
        max_reply_characters: A longer reply is cut, with a note of how much is missing.
        format: How the policy writes calls (`herl.environment.calls`); `auto` for the way of its chat
            template, and `hermes` if that shows no tools.
        show: What shows the tools to the policy: its chat `template`, or a `prompt` in the system message;
            `auto` for the template, if that shows tools.
        max_turns: As all environments.
        max_tokens: As all environments.
        max_seconds: As all environments.
        keep_turns: As all environments.
    """

    def __init__(
        self,
        functions: Sequence[str | Callable[..., Any]],
        timeout_seconds: float | None = 30.0,
        max_reply_characters: int = 4000,
        format: Literal["auto", "hermes", "json", "mistral"] = "auto",
        show: Literal["auto", "template", "prompt"] = "auto",
        max_turns: int = 8,
        max_tokens: int = 4096,
        max_seconds: float = 300.0,
        keep_turns: bool = False,
    ) -> None:
        super().__init__(max_turns, max_tokens, max_seconds, keep_turns)
        check_above("environment", 0, timeout_seconds=timeout_seconds)
        check_at_least("environment", 1, max_reply_characters=max_reply_characters)
        if isinstance(functions, str) or not functions:
            raise ConfigError(
                "environment.functions: expected a list of paths, such as [my_tools.lookup], got "
                f"{functions!r}"
            )
        self._tools: dict[str, Tool] = {}
        for one in functions:
            tool = Tool(
                configured("environment.functions", one) if isinstance(one, str) else one,
                one if isinstance(one, str) else None,
            )
            if tool.name in self._tools:
                raise ConfigError(
                    f"environment.functions: expected different names, got two functions named '{tool.name}'"
                )
            self._tools[tool.name] = tool
        self._seconds, self._longest = timeout_seconds, max_reply_characters
        self._wanted_format, self._wanted_show = format, show
        self._format: Format = "hermes" if format == "auto" else format
        self._in_prompt = show == "prompt"
        self._takes_system = True
        self._warned: set[tuple[str, str]] = set()
        self.roles = ("tool",)

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools as chat templates take them."""
        return [tool.schema for tool in self._tools.values()]

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Finds out what the model's chat template knows of tools.

        Raises:
            ConfigError: it does not show tools, or nobody knows how its model writes calls.
        """
        template = str(tokenizer.chat_template)
        shows = _rendered(tokenizer, _PROBE, self.schemas) not in (None, _rendered(tokenizer, _PROBE))
        if self._wanted_show == "template" and not shows:
            raise ConfigError(
                "environment.show: expected a model whose chat template shows tools for show=template, got "
                "one that does not: use show=prompt"
            )
        self._in_prompt = self._wanted_show == "prompt" or not shows
        if self._wanted_format == "auto":
            self._format = self._format_of(template)
        system: Message = {"role": "system", "content": "herl-system"}
        self._takes_system = "herl-system" in (_rendered(tokenizer, [system, *_PROBE]) or "")
        said: Message = {"role": "assistant", "content": "herl-said"}
        reply = self._message("herl", "herl-reply", "000000000")
        takes_tool = "herl-reply" in (_rendered(tokenizer, [*_PROBE, said, reply], self._shown) or "")
        self.roles = ("tool",) if takes_tool else ("user",)

    def _format_of(self, template: str) -> Format:
        for mark, style in _MARKS:
            if mark in template and "<function=" not in template:
                return style
        if '"parameters"' in template and not self._in_prompt:
            return "json"
        if self._in_prompt:
            return "hermes"
        raise ConfigError(
            "environment.format: the model's chat template shows tools, but not in a way that herl knows. "
            "Expected hermes, json or mistral, or show=prompt, which spells the format out, got auto"
        )

    @property
    def _shown(self) -> list[dict[str, Any]]:
        """The tools that the chat template shows."""
        return [] if self._in_prompt else self.schemas

    def start(self, task: Task) -> Opening:
        """Returns the task's messages with the tools, which the template or a system message shows."""
        if not self._in_prompt:
            return Opening(messages=task.messages, tools=self.schemas)
        tools = "\n".join(json.dumps(one["function"], ensure_ascii=False) for one in self.schemas)
        template = prompt_text.load("herl.environment", "show_tools.txt")
        text = prompt_text.fill(template, {"tools": tools, "call": _EXAMPLES[self._format]})
        first, *rest = task.messages
        role = "system" if self._takes_system else "user"
        if first["role"] == role:
            return Opening(messages=[{**first, "content": f"{first['content']}\n\n{text}"}, *rest])
        return Opening(messages=[{"role": role, "content": text}, *task.messages])

    async def step(self, conversation: Conversation, answer: str) -> Reply | None:
        """Returns a message for each call; None if there is no call."""
        written = read_calls(answer, conversation.raw, self._format)
        if not written:
            return None
        calls, told = [], []
        for place, call in enumerate(written):
            text, error = await self._outcome(call, conversation)
            calls.append(ToolCall(name=call.name, arguments=call.arguments, error=error))
            number = call.id or f"{conversation.turn:04d}{place:05d}"
            told.append((call.name, text, number))
        if self.roles == ("tool",):
            return Reply([self._message(*one) for one in told], calls)
        wrapper = prompt_text.load("herl.environment", "tool_reply.txt")
        texts = [
            prompt_text.fill(wrapper, {"name": name, "reply": text}) if name else text
            for name, text, _ in told
        ]
        return Reply([{"role": "user", "content": "\n\n".join(texts)}], calls)

    async def _outcome(self, call: Call, conversation: Conversation) -> tuple[str, str]:
        """What the policy is told of a call, and the kind of its error."""
        try:
            if call.problem:
                raise ToolError("malformed", f"The call cannot be read: {call.problem}.")
            tool = self._tools.get(call.name)
            if tool is None:
                known = ", ".join(self._tools)
                near = did_you_mean(call.name, self._tools)
                name = cut(call.name, 80)
                raise ToolError("unknown", f"There is no tool named '{name}'.{near} The tools are: {known}.")
            tool.check(call.arguments)
            task = replace(conversation.task, hidden=())  # the function must not learn them
            return await tool.call(call.arguments, task, conversation.state, self._seconds, self._longest), ""
        except ToolError as error:
            if error.note:
                self._warn(call.name, error, conversation.task)
            return cut(str(error), self._longest), error.kind

    def _message(self, name: str, text: str, number: str) -> Message:
        return {"role": "tool", **({"name": name} if name else {}), "tool_call_id": number, "content": text}

    def _warn(self, name: str, error: ToolError, task: Task) -> None:
        """Warns once of each way in which a tool fails by itself."""
        if (name, error.kind) not in self._warned:
            self._warned.add((name, error.kind))
            logger.warning("tool %s: %s (task '%s'). The policy is told.", name, error.note, task.id)

    def close(self) -> None:
        """Ends the process that calls functions, unless a judge uses it."""
        shared().rest()


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
) -> str | None:
    try:
        return render_text(tokenizer, messages, FIXED, tools)
    except DataError:
        return None
