"""`Chat`, the interface between `LLMJudge` and the judging model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herl.types import Message

MODEL_FILES = ("*.safetensors", "*.bin", "*.gguf", "*.json", "*.txt", "*.model", "*.jinja")
"""Files of a model's folder that its replies depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One question to a judging model."""

    messages: tuple[Message, ...]
    schema: Mapping[str, Any]
    """JSON schema of the reply, for backends that can enforce it."""
    temperature: float
    max_tokens: int
    """Maximum number of tokens in the reply."""
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """A model's reply and its cost."""

    text: str
    refusal: str = ""
    """Why the model refused; empty if it did not."""
    cut_off: bool = False
    """Whether the reply ended because it reached its maximum length."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Chat(ABC):
    """Answers one request at a time; the framework sends many at once, on one event loop.

    `prepare`, `start`, `stop` and `close` are called in the same order as a judge's.
    """

    of_each_rank = False
    """Whether each rank asks a separate model, so that requests of one rank do not hold up another's."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Names all that determines a reply besides the request: the model, where it runs, its settings."""

    @abstractmethod
    async def complete(self, request: ChatRequest) -> ChatReply:
        """Returns the model's reply.

        Raises:
            JudgeError: there is no reply; `cause` says why, and `retry` whether to try again.
            ConfigError: no request can ever succeed.
        """

    def prepare(self) -> None:  # noqa: B027  # nothing to do is the right default
        """Loads models and starts servers, in the main thread of every rank. Safe to call twice."""

    async def start(self) -> None:  # noqa: B027
        """Opens resources bound to the event loop."""

    async def stop(self) -> None:  # noqa: B027
        """Closes the resources that `start` opened."""

    def close(self) -> None:  # noqa: B027
        """Releases the models and servers that `prepare` set up."""


def model_identity(model: object, source: str) -> str:
    """Returns a judging model's name, with all that makes its replies those of another model: the type of its
    weights, their quantization and, in a folder, the names, sizes and times of change of its files.

    Args:
        model: The model.
        source: Its folder, or its name on the hub.
    """
    settings = [
        f" {name}={value}" for name in ("dtype", "quantization") if (value := getattr(model, name, None))
    ]
    files = [
        (path.name, (stat := path.stat()).st_size, stat.st_mtime_ns)
        for pattern in MODEL_FILES
        for path in sorted(Path(source).glob(pattern))
    ]
    return f"{source}{''.join(settings)}{files or ''}"


def template_variables(model: object) -> dict[str, Any]:
    """Returns a judging model's variables of the chat template (`PretrainedModel.chat_template_kwargs`)."""
    return dict(getattr(model, "chat_template_kwargs", None) or {})
