"""The HTTP client of the vLLM servers: tracks which are up and have room, and handles their failures.

Everything here runs on one event loop in a dedicated thread, so that it also works inside a notebook.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from herl.errors import SamplerError
from herl.sampler.receipts import Layout, Receipts

logger = logging.getLogger(__name__)
T = TypeVar("T")
HEALTH_SECONDS = 5.0
MAX_FAILURES = 4


@dataclass(slots=True)
class Server:
    """The state of one server, as this rank knows it."""

    url: str
    up: bool = True
    busy: int = 0
    """Requests from this rank that it is working on."""
    turn: int = 0
    """Number of this rank's request that it received last."""
    problem: str = ""
    """Why it was last excluded."""
    broken: bool = False
    """Whether a reload failed midway: the server must be restarted, under another URL."""
    extended: bool = False
    """Whether its workers have herl's methods, and can report which weights they hold."""
    lost: Sequence[str] = ()
    """Weights that it lacks since the last reload."""


class NoServerLeft(SamplerError):
    """All servers are down."""


class PunctualClient(httpx.AsyncClient):
    """An HTTP client whose read time-out limits each request as a whole, however slowly the bytes come.

    It follows no redirect, as is httpx's default.
    """

    async def send(self, request: httpx.Request, **settings: Any) -> httpx.Response:
        """Returns the reply, which has been read.

        Raises:
            httpx.ReadTimeout: time ran out.
        """
        seconds = request.extensions["timeout"]["read"]
        try:
            async with asyncio.timeout(seconds):
                return await super().send(request, **settings)
        except TimeoutError as error:
            raise httpx.ReadTimeout(f"no whole reply within {seconds:g} s", request=request) from error


class ServerPool:
    """Servers that take over each other's requests.

    Args:
        servers: The servers; the list is replaced when another rank reports changes.
        requests_per_server: Requests to one server at the same time.
        timeout_seconds: How long an answer or a reload may take.
        key: The API key, if the servers require one.
    """

    def __init__(
        self, servers: Sequence[Server], *, requests_per_server: int, timeout_seconds: float, key: str | None
    ) -> None:
        self.servers = list(servers)
        self.layouts: dict[str, Layout] = {}
        """Engine layouts discovered so far, by URL."""
        self._requests_per_server = requests_per_server
        self._turns = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm_server", daemon=True)
        self._thread.start()
        self._room = asyncio.Condition()
        self._client = PunctualClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_seconds, connect=10.0, pool=None),
            # shorter than the servers' 5 s, so that no request goes out on a connection being closed
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0),
            trust_env=False,  # servers on a private network are not behind a proxy
        )

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine on the pool's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the pool's loop to its end."""
        return self.submit(work).result()

    async def model_name(self) -> str:
        """Returns the name of the model that all servers serve.

        Raises:
            SamplerError: a server does not answer, or serves another model.
        """
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

    async def complete(self, body: dict[str, Any]) -> httpx.Response:
        """Returns a server's reply to a completion request: an answer, or its refusal (HTTP 4xx).

        A request whose server died goes to another one.

        Raises:
            SamplerError: no server is left, or live servers fail repeatedly at this request.
        """
        failures = 0
        while True:
            async with self._free_server() as server:
                try:
                    reply = await self._client.post(f"{server.url}/v1/completions", json=body)
                    if reply.status_code == 429 or reply.status_code >= 500 or reply.has_redirect_location:
                        reply.raise_for_status()
                    if not _was_aborted(reply):
                        return reply
                    problem = "it aborted unfinished answers"
                except httpx.HTTPError as error:
                    problem = _say(error)
                if not await self._alive(server):
                    server.up, server.problem = False, problem
                    continue
            failures += 1  # a lost connection, or an overloaded server
            if failures == MAX_FAILURES:
                raise SamplerError(f"an answer failed {failures} times, last at {server.url}: {problem}")
            await asyncio.sleep(failures)

    async def prepare(self, receipts: Receipts) -> None:
        """Discovers the layouts of new servers with herl's methods; a failed one also fails in `reload`."""
        new = [s for s in self.servers if s.extended and s.url not in self.layouts and not s.broken]
        found = await asyncio.gather(*(self._dye(s, receipts) for s in new), return_exceptions=True)
        for server, problem in zip(new, found, strict=True):
            if isinstance(problem, httpx.HTTPStatusError):  # colors may be left in its engine
                server.broken, server.problem = True, _say(problem)
            elif isinstance(problem, BaseException) and not isinstance(problem, httpx.HTTPError):
                raise problem

    async def _dye(self, server: Server, receipts: Receipts) -> None:
        dyed = await self._call(server, "herl_dye", receipts.colors())
        self.layouts[server.url] = receipts.learn(dyed)

    async def reload(self, folder: Path, receipts: Receipts, seed: int) -> None:
        """Makes every server load the weights in a folder. One that fails is excluded until the next reload.

        Args:
            folder: Holds the weights as safetensors.
            receipts: Has watched the weights, and is compared with those that the servers hold.
            seed: The seed that the weights were watched with.

        Raises:
            SamplerError: a server does not support reloading, or none loaded the weights.
        """
        await asyncio.gather(*(self.reload_one(server, folder) for server in self.servers))
        if not any(server.up for server in self.servers):
            raise self._all_down()
        await asyncio.gather(*(self._compare(s, receipts, seed) for s in self.servers if s.up and s.extended))

    async def _compare(self, server: Server, receipts: Receipts, seed: int) -> None:
        if server.url not in self.layouts:
            server.up, server.problem = False, "it did not report how it holds weights"
            return
        try:
            held = await self._call(server, "herl_checksums", seed)
            server.lost = receipts.lost(self.layouts[server.url], held)
        except httpx.HTTPError as error:
            server.up, server.problem = False, _say(error)

    async def engine_dtype(self) -> str | None:
        """Returns the type that the servers compute in, or None if none of them reports it.

        Also records which of them have herl's methods.
        """
        found: set[str] = set()
        for server in self.servers:
            try:
                [settings, *_] = await self._call(server, "herl_settings")
                server.extended = True
                found.add(settings["dtype"])
            except httpx.HTTPError:
                found |= await self._configured_dtype(server)
        return min(found, default=None)  # bfloat16 before float32

    async def _configured_dtype(self, server: Server) -> set[str]:
        """Returns the type in a server's configuration, if the server reports it."""
        for _ in range(2):  # the server may close the connection on which a method failed
            with suppress(httpx.TransportError):
                reply = await self._client.get(f"{server.url}/server_info?config_format=json")
                if not reply.is_success:
                    break
                return {str(reply.json()["vllm_config"]["model_config"]["dtype"]).removeprefix("torch.")}
        return set()

    async def _call(self, server: Server, method: str, *arguments: Any, **named: Any) -> list[Any]:
        """Calls a method of a server's workers, and returns each worker's result."""
        body = {"method": method, "args": arguments, "kwargs": named}
        reply = await self._client.post(f"{server.url}/collective_rpc", json=body)
        if reply.status_code == 404:
            raise SamplerError(
                f"the vLLM server at {server.url} cannot reload weights: start it with "
                "VLLM_SERVER_DEV_MODE=1 in its environment"
            )
        reply.raise_for_status()
        results: list[Any] = reply.json()["results"]
        return results

    async def reload_one(self, server: Server, folder: Path) -> None:
        """Makes one server load the weights in a folder and clear the cache of the old ones."""
        if server.broken or not await self._alive(server):
            server.up, server.problem = False, server.problem or "it does not answer"
            return
        try:
            method = "herl_reload" if server.extended else "reload_weights"
            await self._call(server, method, weights_path=str(folder))
            reset = await self._client.post(f"{server.url}/reset_prefix_cache?reset_running_requests=true")
            reset.raise_for_status()
            server.up = bool(reset.json().get("success"))
            server.problem = "" if server.up else "it did not clear its cached keys and values"
        except httpx.HTTPError as error:
            server.up, server.problem = False, _say(error)
            # the engine may hold part of the new weights, which would mix with the next ones
            server.broken = isinstance(error, httpx.HTTPStatusError)
        if not server.up:
            logger.warning("excluding the vLLM server at %s: %s", server.url, server.problem)

    def close(self) -> None:
        """Cancels running requests, and closes the connections and the thread."""
        self.run(self._hang_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _hang_up(self) -> None:
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.aclose()
        await asyncio.sleep(0.1)  # sockets close in the next iterations of the loop

    async def _alive(self, server: Server) -> bool:
        try:
            return (await self._client.get(f"{server.url}/health", timeout=HEALTH_SECONDS)).is_success
        except httpx.HTTPError:
            return False

    @asynccontextmanager
    async def _free_server(self) -> AsyncIterator[Server]:
        """Waits for room on a server that is up, and takes the least busy; among equals, the next in turn.

        As many requests as there are servers therefore reach each of them, however fast they are answered.

        Raises:
            SamplerError: no server is left.
        """

        def free() -> list[Server]:
            return [s for s in self.servers if s.up and s.busy < self._requests_per_server]

        async with self._room:
            await self._room.wait_for(lambda: free() or not any(s.up for s in self.servers))
            if not free():
                raise self._all_down()
            server = min(free(), key=lambda s: (s.busy, s.turn))
            server.busy, server.turn = server.busy + 1, next(self._turns)
        try:
            yield server
        finally:
            server.busy -= 1
            async with self._room:
                self._room.notify_all()

    def _all_down(self) -> NoServerLeft:
        problems = "; ".join(f"{server.url}: {server.problem}" for server in self.servers)
        return NoServerLeft(f"no vLLM server is left ({problems})")


def _was_aborted(reply: httpx.Response) -> bool:
    """Whether a server that is shutting down returned a partial answer."""
    if not reply.is_success:
        return False
    return any(choice.get("finish_reason") == "abort" for choice in reply.json().get("choices", []))


def _say(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        if (reply := error.response).has_redirect_location:
            host = httpx.URL(reply.headers["location"]).host or reply.url.host
            return f"HTTP {reply.status_code}: it redirects to {host}, which is not followed"
        return f"HTTP {error.response.status_code}: {error.response.text[:300]}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
