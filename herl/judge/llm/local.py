"""A judging model in this process, run by the engines that also sample from the policy. Uses no HTTP.

Requests that arrive during a round wait for the next one and are answered together. The model runs in a
separate thread and shares no weights, generators or random numbers with the policy.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from herl.errors import DataError, JudgeError, SamplerError
from herl.judge.llm.chat import Chat, ChatReply, ChatRequest, model_identity, template_variables
from herl.judge.llm.parse import first_object
from herl.models.chat_template import defused, render
from herl.models.weights import named_weights
from herl.types import Message, Rollout, SampleRequest, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
GATHER_SECONDS = 0.01
"""Time to wait for more requests before a round."""


@runtime_checkable
class Model(Protocol):
    """A model to judge with, such as `herl.models.pretrained.PretrainedModel`."""

    def source(self) -> str: ...
    def load(self) -> PreTrainedModel: ...
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


@runtime_checkable
class Generator(Protocol):
    """Writes the replies: any `herl.sampler.Sampler`."""

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None: ...
    def generate(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]: ...
    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None: ...
    def close(self) -> None: ...


class LocalChat(Chat):
    """Writes replies in this process. A reply's fixed opening is prefilled; the rest is unconstrained.

    A small model therefore does best in `per_criterion` mode without reasons, where the first free word is
    the verdict.

    Args:
        model: The judging model.
        generator: A sampler for this model alone, not the policy's.
        device: Device to move the model to; None leaves it where it was loaded.
    """

    of_each_rank = True

    def __init__(self, model: Model, generator: Generator, device: str | None = None) -> None:
        self._model = model
        self._generator = generator
        self._device = device
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._waiting: list[tuple[ChatRequest, asyncio.Future[ChatReply]]] = []
        self._rounds: asyncio.Task[None] | None = None
        self._told = False

    @cached_property
    def identity(self) -> str:
        """The model and the engine."""
        model = model_identity(self._model, self._model.source())
        return f"{type(self._generator).__name__} {model}{template_variables(self._model) or ''}"

    def prepare(self) -> None:
        """Loads the model, once."""
        if self._tokenizer is None:
            loaded = self._model.load().eval().requires_grad_(False)
            if self._device is not None:
                loaded = loaded.to(self._device)
            self._tokenizer = self._model.tokenizer()
            self._generator.start(loaded, self._tokenizer)
            self._generator.load_weights(named_weights(loaded), 0)

    async def stop(self) -> None:
        """Drops the waiting requests, and waits for a round in progress to end."""
        self._waiting.clear()
        if self._rounds is not None:
            await asyncio.gather(self._rounds, return_exceptions=True)

    def close(self) -> None:
        """Frees the engine."""
        if self._tokenizer is not None:
            self._generator.close()

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Returns the model's reply.

        Raises:
            JudgeError: the engine rejects the request, e.g. because it is too long.
        """
        reply: asyncio.Future[ChatReply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, reply))
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._write_rounds())
        return await reply

    async def _write_rounds(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_SECONDS)
            batch, self._waiting = self._waiting, []
            try:
                replies = await asyncio.to_thread(self._write, [request for request, _ in batch])
            except Exception as error:  # any error of the engine must reach the waiting callers
                replies = [error] * len(batch)
            for (_, future), reply in zip(batch, replies, strict=True):
                if future.done():
                    continue  # canceled
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

    def _write(self, requests: Sequence[ChatRequest]) -> list[ChatReply | Exception]:
        """Writes replies to all requests together; if the engine rejects the batch, one at a time."""
        try:
            return list(self._generate(requests))
        except SamplerError as error:
            if len(requests) == 1:
                return [JudgeError(f"the judge's engine rejects the request: {error}", "refused")]
            return [reply for request in requests for reply in self._write([request])]

    def _generate(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        assert self._tokenizer is not None, "prepare the chat first"
        sampled = self._generator.generate(
            [self._sample_request(place, request) for place, request in enumerate(requests)]
        )
        rollouts = {rollout.task_id: rollout for rollout in sampled}
        found = [rollouts[str(place)] for place in range(len(requests))]
        return [_reply(request, rollout) for request, rollout in zip(requests, found, strict=True)]

    def _sample_request(self, place: int, request: ChatRequest) -> SampleRequest:
        assert self._tokenizer is not None
        messages = [defused(self._tokenizer, message) for message in request.messages]
        try:
            ids = render(self._tokenizer, messages)
        except DataError as error:  # a template without system messages (Gemma, Mistral)
            ids = render(self._tokenizer, _without_system(messages))
            if not self._told:
                self._told = True
                logger.warning("the judge's system message stands before the request, since %s", error)
        begun = self._tokenizer(opening(request.schema), add_special_tokens=False)["input_ids"]
        return SampleRequest(
            task_id=str(place),
            group_id=str(place),
            prompt_ids=tuple(map(int, [*ids, *begun])),
            n=1,
            sampling=Sampling(temperature=request.temperature, max_new_tokens=request.max_tokens),
            seed=request.seed,
        )


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """Puts the system message in front of the first message of the user."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    first, *others = [message for message in messages if message["role"] != "system"]
    return [{**first, "content": "\n\n".join([*system, first["content"]])}, *others]


def _reply(request: ChatRequest, rollout: Rollout) -> ChatReply:
    """The reply ends with the object that its prefilled opening began: a small model may ramble on."""
    # A reply after thinking starts from its beginning; without thinking it goes on from the opening.
    text = rollout.text if rollout.thinking_tokens else opening(request.schema) + rollout.text
    whole = first_object(text)
    return ChatReply(
        text=whole or text,
        cut_off=whole is None and rollout.finish_reason == "length",
        prompt_tokens=len(rollout.prompt_ids),
        completion_tokens=len(rollout.token_ids),
    )


def opening(schema: Mapping[str, Any]) -> str:
    """Returns the beginning that all replies of this schema share, up to the first free word.

    For one verdict without a reason: {"code": "0f3a9c51", "verdicts": {"1": {"verdict": "
    """
    if schema.get("type") != "object":
        return '"'
    begun = "{"
    for name, part in schema["properties"].items():
        begun += f'"{name}": '
        if len(part.get("enum", ())) != 1:
            return begun + opening(part)
        begun += f"{json.dumps(part['enum'][0])}, "
    return begun
