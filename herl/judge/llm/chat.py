"""A model that judges, as a chat: `Chat` is the interface between `LLMJudge` and whatever answers it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from herl.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One question to a judging model."""

    messages: tuple[Message, ...]
    schema: Mapping[str, Any]
    """JSON schema of the reply, for those who can hold a model to it."""
    temperature: float
    max_tokens: int
    """Tokens of the reply, at most."""
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """What came back, and what it cost."""

    text: str
    refusal: str = ""
    """Why the model declines to reply; empty where it does not."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Chat(ABC):
    """Answers one request at a time; the framework sends many at once, on one event loop.

    `prepare`, `start`, `stop` and `close` are called as those of a judge.
    """

    @property
    @abstractmethod
    def identity(self) -> str:
        """Names whatever decides a reply besides the request: the model, where it runs, its settings."""

    @abstractmethod
    async def complete(self, request: ChatRequest) -> ChatReply:
        """Returns the model's reply.

        Raises:
            JudgeError: there is none; says by `cause` why, and by `retry` whether to try again.
            ConfigError: no request can ever succeed.
        """

    def prepare(self) -> None:  # noqa: B027  # nothing to do is the right default
        """Loads models and starts servers, in the main thread of every rank. Safe to call again."""

    async def start(self) -> None:  # noqa: B027
        """Opens what belongs to the event loop."""

    async def stop(self) -> None:  # noqa: B027
        """Closes what `start` opened."""

    def close(self) -> None:  # noqa: B027
        """Ends what `prepare` began."""
