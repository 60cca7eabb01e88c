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

A function that is named by its path is called in a separate process (`herl.background.worker`), with a time
limit, as functions of judges are. A turn's calls are made one after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from herl.background.worker import shared
from herl.environment import Conversation, Environment, Opening, Reply
from herl.environment.call_style import CallStyle, call_numbers
from herl.environment.calls import Call
from herl.environment.tool import Tool, ToolError, cut
from herl.errors import ConfigError, check_above, check_at_least, did_you_mean
from herl.targets import configured
from herl.types import Task, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


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
        format: Literal["auto", "hermes", "json", "mistral", "xml", "response_template"] = "auto",
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
        self._style = CallStyle(format, show)
        self._warned: set[tuple[str, str]] = set()
        self.roles = ("tool",)
        self.tool_names = frozenset(self._tools)

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools as chat templates take them."""
        return [tool.schema for tool in self._tools.values()]

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Finds out what the model's chat template knows of tools.

        Raises:
            ConfigError: it does not show tools, or nobody knows how its model writes calls.
        """
        self._style.prepare(tokenizer, self.schemas)
        self.roles = (self._style.role,)

    def start(self, task: Task) -> Opening:
        """Returns the task's messages with the tools, which the template or a system message shows."""
        return self._style.opening(task.messages, self.schemas)

    async def step(self, conversation: Conversation, answer: str) -> Reply | None:
        """Returns a message for each call; None if there is no call."""
        written = self._style.read(answer, conversation.raw, self.schemas)
        if not written:
            return None
        calls, told = [], []
        for number, call in zip(call_numbers(written, conversation.turn), written, strict=True):
            text, error = await self._outcome(call, conversation)
            calls.append(ToolCall(name=call.name, arguments=call.arguments, error=error))
            told.append((call.name if call.name in self._tools else "", text, number))
        return Reply(self._style.told(told), calls)

    async def _outcome(self, call: Call, conversation: Conversation) -> tuple[str, str]:
        """The text that the policy reads of a call, and the kind of its error."""
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

    def _warn(self, name: str, error: ToolError, task: Task) -> None:
        """Warns once of each way in which a tool fails by itself."""
        if (name, error.kind) not in self._warned:
            self._warned.add((name, error.kind))
            logger.warning(
                "tool %s: %s (task '%s'). The policy reads it as a reply", name, error.note, task.id
            )

    def close(self) -> None:
        """Ends the process that calls functions, unless a judge uses it."""
        shared().rest()
