"""Replies as an environment of `verifiers` gives them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from herl.environment import Conversation, Environment, Opening, Reply
from herl.environment.call_style import CallStyle, call_numbers
from herl.types import Message, Task, ToolCall
from herl.verifiers.episode import plain
from herl.verifiers.loading import loaded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VerifiersEnvironment(Environment):
    """Replies as an environment of `verifiers` does.

    Args:
        name: The environment's name; its module must be in HERL_ALLOW_TARGETS.
        arguments: Arguments of its `load_environment`.
        format: How the policy writes calls of tools, as in `herl.environment.call_style`.
        show: What shows tools to the policy.
        max_turns: As all environments. The environment may end earlier.
        max_tokens: As all environments.
        max_seconds: As all environments.
        keep_turns: As all environments.
    """

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        format: Literal["auto", "hermes", "json", "mistral", "xml", "response_template"] = "auto",
        show: Literal["auto", "template", "prompt"] = "auto",
        max_turns: int = 8,
        max_tokens: int = 4096,
        max_seconds: float = 300.0,
        keep_turns: bool = False,
    ) -> None:
        super().__init__(max_turns, max_tokens, max_seconds, keep_turns)
        self._loaded = loaded(name, arguments)
        self._style = CallStyle(format, show)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Finds out how the policy uses tools, if there are any."""
        if tools := self._loaded.first_tools():
            self._style.prepare(tokenizer, tools)
            self.roles = tuple(sorted({self._style.role, "user"}))

    def start(self, task: Task) -> Opening:
        """Returns a row's prompt and tools."""
        return self._style.opening(task.messages, self._loaded.tools(self._loaded.row(task)))

    async def step(self, conversation: Conversation, answer: str) -> Reply | None:
        """Returns what the environment says to an answer and its calls; None if its episode is over."""
        tools = self._loaded.tools(self._loaded.row(conversation.task))
        written = self._style.read(answer, conversation.raw, tools) if tools else []
        numbered = dict(zip(call_numbers(written, conversation.turn), written, strict=True))
        calls = [  # the environment says what it thinks of arguments that are no JSON
            {"id": number, "name": call.name, "arguments": call.problem or json.dumps(call.arguments)}
            for number, call in numbered.items()
        ]
        work = self._loaded.begun(conversation).answer(answer, calls)
        replies = await asyncio.wrap_future(self._loaded.thread.submit(work))
        if replies is None:
            return None
        known = {one["function"]["name"] for one in tools}
        names = {number: call.name for number, call in numbered.items() if call.name in known}
        called = [
            ToolCall(
                name=one.name,
                arguments=one.arguments,
                error="malformed" if one.problem else "" if one.name in known else "unknown",
            )
            for one in written
        ]
        return Reply(self._told([plain(one) for one in replies], names), called)

    def _told(self, replies: Sequence[Message], names: Mapping[str, str]) -> list[Message]:
        of_tools = [one for one in replies if one["role"] == "tool"]
        told = [(names.get(one["tool_call_id"], ""), one["content"], one["tool_call_id"]) for one in of_tools]
        others = [{"role": one["role"], "content": one["content"]} for one in replies if one not in of_tools]
        return [*(self._style.told(told) if told else ()), *others]

    async def end(self, conversation: Conversation) -> None:
        """Ends the environment's episode, and computes its rewards if a judge will ask for them.

        An answer that was cut off in its first turn has no episode; a judge plays it (`Loaded.scores`).
        """
        if episode := self._loaded.ended(conversation):
            work = episode.finish(conversation.messages[-1]["content"], conversation.turn + 1)
            await asyncio.wrap_future(self._loaded.thread.submit(work))

    def close(self) -> None:
        """Ends the episodes that are still played."""
        self._loaded.cancel()
