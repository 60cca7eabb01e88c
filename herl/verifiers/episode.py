"""One episode, as the loop of `verifiers` plays it with the policy as its client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from herl.background.loop import ANYTHING, is_stopped
from herl.errors import ConfigError, DataError, JudgeError
from herl.judge.llm.parse import without_thinking
from herl.types import Message, Rollout

Score = float | BaseException
"""What a reward function returned or raised."""


class Episode:
    """An episode. It runs on the event loop of its environment.

    Args:
        environment: The environment of `verifiers`.
        row: The row that it is about.
        tools: The tools that the policy was shown, as `schemas` returns them.
        score: Computes its scores from its state, by the id of the reward function.
    """

    def __init__(
        self,
        environment: Any,
        row: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]],
        score: Callable[[Any], Awaitable[dict[str, Score]]],
    ) -> None:
        self._environment, self._row, self._tools, self._score = environment, row, tools, score
        self.scores: Future[dict[str, Score]] = Future()
        """Set when it has ended."""
        self._said_so_far: list[int] = []  # hashes of the answers
        self._asked: asyncio.Queue[list[Any]] = asyncio.Queue()
        self._said: asyncio.Queue[Any] = asyncio.Queue()
        self._loop: asyncio.Task[Any] | None = None
        self._waits = False  # the loop waits for an answer
        self._state: Any = None
        self._prompt = chat(row["prompt"])

    def is_of(self, rollout: Rollout) -> bool:
        """Whether it was played with these answers: another validation gives the same ids to others."""
        last = rollout.text
        if rollout.thinking and last.startswith(rollout.thinking):  # as judges may see it
            last = last.removeprefix(rollout.thinking).removeprefix("\n\n")
        said = [_hash(text) for text in (*(turn.text for turn in rollout.turns), last)]
        if self.scores.done():
            return said == self._said_so_far
        return said[: len(self._said_so_far)] == self._said_so_far

    async def answer(self, text: str, calls: Sequence[Mapping[str, str]] = ()) -> list[Any] | None:
        """Gives the loop an answer with its calls; returns the reply's messages, or None if it is over."""
        if not await self._begin():
            return None
        self._said_so_far.append(_hash(text))
        before = self._prompt
        self._say(_response(text, calls))
        if (asked := await self._next()) is None:
            return None
        now = [plain(one) for one in asked]
        count = len(before) + 1
        if now[: len(before)] != before or len(now) < count or now[count - 1]["role"] != "assistant":
            raise ConfigError(
                f"environment: expected replies that follow what was said, but '{self._environment.env_id}' "
                "rewrites earlier messages, which cannot be trained on"
            )
        self._prompt = now
        return asked[count:]

    async def finish(self, text: str, turns: int) -> None:
        """Ends the episode with its last answer, which is the first that the loop sees of an answer that was
        cut off, and computes its rewards.

        Args:
            text: The last answer.
            turns: Number of answers.
        """
        taken = len(self._said_so_far) >= turns
        if not taken:
            self._said_so_far.append(_hash(text))
        try:
            state = await self._ended(text, taken)
            self.scores.set_result(await self._score(state))
        except ANYTHING as error:  # whoever asks for the scores gets it
            self.scores.set_exception(_failure(error))
            if is_stopped(error):
                raise
        finally:  # only the scores are kept
            self._state = self._loop = None
            self._row, self._prompt, self._tools = {}, [], ()

    async def alone(self, rollout: Rollout) -> dict[str, Score]:
        """Plays an answer in one turn, and returns its scores."""
        try:
            if not rollout.cut_off:
                await self.answer(rollout.text)
            return await self._score(await self._ended(rollout.text, taken=not rollout.cut_off))
        except ConfigError:
            raise
        except ANYTHING as error:
            if is_stopped(error):
                raise
            raise _failure(error) from error

    async def _ended(self, text: str, taken: bool) -> Any:
        """The state after the last answer, which the loop has taken in unless it was cut off."""
        begun = await self._begin()
        assert self._loop is not None
        if begun and self._waits:
            if not taken:  # the loop takes the answer in, and stops at once
                self._state["prompt_too_long"] = True
                self._say(_response(text, (), cut_off=True))
            else:  # it has replied, and its reply was not taken
                self._say(None)
        elif not self._loop.done():  # it took too long
            self._loop.cancel()
        await asyncio.wait([self._loop])
        state = self._state if self._loop.cancelled() else self._loop.result()
        if state is None or state.get("error") is not None:
            raise state["error"] if state is not None else JudgeError("it never began", "environment")
        return state

    async def _begin(self) -> bool:
        """Starts the loop, unless it runs; returns whether it waits for an answer or has done so."""
        if self._loop is None:
            played = self._environment.rollout(dict(self._row), self, "policy", {})
            self._loop = asyncio.create_task(played)
            if (asked := await self._next()) is None:
                return False
            if [plain(one) for one in asked] != self._prompt:
                raise ConfigError(
                    f"environment: expected episodes that begin with their row's prompt, but "
                    f"'{self._environment.env_id}' changes it in its setup_state"
                )
        return True

    def _say(self, response: Any) -> None:
        self._waits = False
        self._said.put_nowait(response)

    async def _next(self) -> list[Any] | None:
        """The messages that the loop asks an answer to; None if it has ended."""
        assert self._loop is not None
        asked = asyncio.create_task(self._asked.get())
        try:
            await asyncio.wait([asked, self._loop], return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
        finally:
            asked.cancel()
        if (error := self._loop.result().get("error")) is not None:
            raise error
        return None

    async def get_response(self, prompt: Any, model: str, sampling_args: Any, **more: Any) -> Any:
        """The client's method that the loop calls for an answer."""
        from verifiers.errors import OverlongPromptError

        self._state = more["state"]
        if (tools := schemas(more.get("tools") or ())) != self._tools:
            raise ConfigError(
                f"environment: expected episodes with the tools of their row, {_names(self._tools)}, but "
                f"'{self._environment.env_id}' changes them to {_names(tools)}"
            )
        self._waits = True
        self._asked.put_nowait(list(prompt))
        response = await self._said.get()
        if response is None:  # its own way to say that there is no room for an answer
            raise OverlongPromptError("a limit of herl ended the episode")
        return response


def plain(message: Any) -> Message:
    """Returns a message of `verifiers` as herl's. Calls of tools are left out: the text has them.

    Raises:
        DataError: it holds more than text, such as an image.
    """
    one = message if isinstance(message, Mapping) else message.model_dump()
    content = one.get("content")
    if isinstance(content, list | tuple):
        parts = [part if isinstance(part, Mapping) else part.model_dump() for part in content]
        if any(part.get("type") != "text" for part in parts):
            raise DataError(f"expected messages of text, got parts {[part.get('type') for part in parts]}")
        content = "".join(part["text"] for part in parts)
    number = {"tool_call_id": str(one["tool_call_id"])} if one.get("tool_call_id") else {}
    return {"role": str(one["role"]), "content": content or "", **number}


def chat(prompt: Any) -> list[Message]:
    """Returns a row's prompt as messages.

    Raises:
        DataError: it is no conversation of texts that ends with the user's words.
    """
    if isinstance(prompt, str) or not prompt:
        raise DataError(f"prompt: expected a list of messages, got {str(prompt)[:80]!r}")
    messages = [plain(one) for one in prompt]
    if messages[-1]["role"] != "user":
        raise DataError(f"prompt: expected the last role to be 'user', got '{messages[-1]['role']}'")
    if any(one["role"] not in ("system", "user", "assistant") for one in messages):
        raise DataError("prompt: expected messages of system, user and assistant")
    return messages


def schemas(tools: Iterable[Any]) -> list[dict[str, Any]]:
    """Returns tools of `verifiers` as chat templates take them."""
    from verifiers.types import Tool

    keys = ("name", "description", "parameters")
    found = [Tool.model_validate(one).model_dump() for one in tools]
    return [{"type": "function", "function": {key: one[key] for key in keys}} for one in found]


def _names(tools: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(one["function"]["name"] for one in tools) or "none"


def _hash(text: str) -> int:
    """Of an answer without thinking that it begins with, which judges may not see."""
    return hash(without_thinking(text))


def bare(error: BaseException) -> BaseException:
    """Returns an error without its traceback and causes, whose frames hold the state of an episode."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _failure(error: BaseException) -> JudgeError:
    if isinstance(error, JudgeError):
        return JudgeError(str(error), error.cause)
    return JudgeError(f"{type(error).__name__}: {error}", "environment")


def _response(text: str, calls: Sequence[Mapping[str, str]], cut_off: bool = False) -> Any:
    """A response of the client to the loop."""
    from verifiers.types import Response, ResponseMessage, ToolCall

    message = ResponseMessage(
        content=text,
        tool_calls=[ToolCall(**call) for call in calls] or None,
        finish_reason="length" if cut_off else "tool_calls" if calls else "stop",
        is_truncated=cut_off,
    )
    return Response(id="herl", created=0, model="policy", message=message)
