"""Runs an environment for many episodes at once, on an event loop in a separate thread.

What an environment raises ends its episode, which then cannot be judged; it never ends the run, unless it is
a `ConfigError`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from herl.background.loop import LoopThread
from herl.environment import Conversation, Environment, NoEnvironment, Reply
from herl.errors import ConfigError
from herl.prompt_text import valid
from herl.types import FinishReason, ToolCall

logger = logging.getLogger(__name__)


ANYTHING = (Exception, SystemExit, KeyboardInterrupt, asyncio.CancelledError)
"""What users' code may raise, in libraries for command lines too; none of it may end the thread."""
END_SECONDS = 10.0
"""Limit on what episodes may take to end when the run does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What came of an answer."""

    reply: Reply | None
    """None if the episode is over."""
    ended: FinishReason
    """How, if it is: `stop`, `seconds` or `failed`."""
    seconds: float
    """Seconds that the environment took."""


class EnvironmentRunner:
    """A running environment.

    Args:
        environment: The environment to run.
    """

    def __init__(self, environment: Environment | None = None) -> None:
        self.environment = environment or NoEnvironment()
        self._thread: LoopThread | None = None
        self._warned: set[str] = set()
        self._begun: dict[int, Conversation] = {}
        """Episodes that have taken a step and have not ended, by the identity of their state."""
        self._ending: set[Future[None]] = set()

    def open(self) -> None:
        """Opens the environment and starts its thread. Safe to call twice."""
        if self.environment.replies and self._thread is None:
            self.environment.open()
            self._thread = LoopThread("environment")

    def close(self) -> None:
        """Cancels steps that still run, ends all episodes, and closes the environment. Safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        wait(list(self._ending), END_SECONDS)
        thread.cancel_all()
        wait([thread.submit(self._end(one)) for one in self._begun.values()], END_SECONDS)
        self._begun.clear()
        thread.cancel_all()
        thread.end()
        self.environment.close()

    def step(self, conversation: Conversation, answer: str, waited: float) -> Future[Step]:
        """Starts a step.

        Args:
            conversation: The episode before the answer.
            answer: The answer.
            waited: Seconds that the episode has waited for its environment so far.

        Returns:
            A future of its result. It raises only a ConfigError, which ends the run.
        """
        assert self._thread is not None, "open the runner first"
        self._begun[id(conversation.state)] = conversation
        return self._thread.submit(self._step(conversation, answer, waited))

    def end(self, conversation: Conversation) -> None:
        """Starts to release what an episode holds, if it has taken a step."""
        assert self._thread is not None, "open the runner first"
        if self._begun.pop(id(conversation.state), None) is not None:
            ending = self._thread.submit(self._end(conversation))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _step(self, conversation: Conversation, answer: str, waited: float) -> Step:
        started = time.monotonic()
        left = self.environment.max_seconds - waited
        ended: FinishReason = "stop"
        reply = None
        try:
            async with asyncio.timeout(left):
                reply = self._checked(await self.environment.step(conversation, answer))
            if time.monotonic() - started > left:  # a step that never waits cannot be stopped
                reply, ended = None, "seconds"
        except ConfigError:
            raise
        except ANYTHING as error:
            if _is_stopped(error):
                raise
            late = isinstance(error, TimeoutError) and time.monotonic() - started >= left
            reply, ended = None, "seconds" if late else "failed"
            if not late:
                self.warn("step", conversation, error)
        return Step(reply=reply, ended=ended, seconds=time.monotonic() - started)

    async def _end(self, conversation: Conversation) -> None:
        try:
            await self.environment.end(conversation)
        except ANYTHING as error:  # the answer is there; what it held is the environment's own matter
            if _is_stopped(error):
                raise
            self.warn("end", conversation, error)

    def _checked(self, reply: Reply | None) -> Reply | None:
        """A reply in the types of JSON, which records and checkpoints can hold."""
        if reply is None:
            return None
        roles = [message["role"] for message in reply.messages]
        if not roles or set(roles) - set(self.environment.roles):
            raise TypeError(
                f"expected a reply of messages of the roles {', '.join(self.environment.roles)} "
                f"(Environment.roles), got {', '.join(roles) or 'none'}"
            )
        if wrong := [one for one in reply.messages if not isinstance(one.get("content"), str)]:
            raise TypeError(f"expected messages with a text as content, got {wrong[0]!r}")
        messages = [
            {key: valid(text) if isinstance(text, str) else text for key, text in message.items()}
            for message in _plain([dict(message) for message in reply.messages])
        ]
        calls = [
            ToolCall(**_plain({"name": one.name, "arguments": dict(one.arguments), "error": one.error}))
            for one in reply.calls
        ]
        return Reply(messages, calls)

    def warn(self, method: str, conversation: Conversation, error: BaseException) -> None:
        """Warns of an error that made an episode fail, once of each kind."""
        kind = f"{method} {type(error).__name__}"
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(
                "%s.%s raised %s: %s (task '%s', turn %d). An episode that fails cannot be judged; see "
                "episodes/failed for how many there are",
                type(self.environment).__name__,
                method,
                type(error).__name__,
                error,
                conversation.task.id,
                conversation.turn,
            )


def _plain(value: Any) -> Any:
    """A value in the types of JSON.

    Raises:
        TypeError: it holds something else.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            "expected a reply of texts, numbers, lists and objects as in JSON, which records and checkpoints "
            f"can hold: {error}"
        ) from error


def _is_stopped(error: BaseException) -> bool:
    """Whether the runner cancels the task, and not some code that its environment shares with others."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
