"""Sends requests to a judging model: cached, deduplicated, rate-limited, retried, and charged to a budget.

Only a complete reply that can be parsed counts. Any other reply is requested again and never cached.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from herl.distributed import world_size
from herl.errors import ConfigError, JudgeError, check_above, check_at_least
from herl.judge.budget import Budget
from herl.judge.llm.chat import Chat, ChatReply, ChatRequest
from herl.judge.llm.parse import PartialReply
from herl.judge.llm.reply_cache import ReplyCache
from herl.judge.llm.shared_limits import SharedFile, SharedRate, SharedSlots, share_file
from herl.judge.llm.wait_notice import WaitNotice

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
CHARACTERS_PER_TOKEN = 4
"""Rough estimate for the tokens-per-minute limit, which applies before the endpoint has counted tokens."""
MAX_LISTED = 100
"""Maximum number of calls missing from an offline cache that are logged by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on the requests to a judging model, shared by the ranks on one machine: what one rank does not
    use is lent to the others. Ranks that ask separate models (`Chat.of_each_rank`) share nothing.

    Rates apply to the whole run and are divided among machines by their ranks.

    Args:
        concurrency: Requests in flight at the same time, for each rank: 8 ranks on a machine have 8 times as
            many together, and each of them can count on its own.
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit. Tokens are estimated from the length of the messages.
        tries: Times a request is sent before it abstains. At temperature 0, one whose reply was cut off is
            sent again once at most.
        backoff_seconds: Longest wait before the second try; doubles with each further try, with jitter. An
            endpoint's Retry-After is honored by all requests.
        max_wait_seconds: Longest wait that an endpoint can ask for at a time; more is shortened to this.
        total_timeout_seconds: Time limit for a request, with all its tries and pauses, counted from when it
            first may be sent. Before, it waits for the rates and for those ahead of it: with n of them, no
            longer than n / concurrency of these times, and one more if its rank's slots were lent.
    """

    concurrency: int = 32
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    tries: int = 6
    backoff_seconds: float = 1.0
    max_wait_seconds: float = 120.0
    total_timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        check_at_least("judge.limits", 1, concurrency=self.concurrency, tries=self.tries)
        check_at_least(
            "judge.limits", 0, backoff_seconds=self.backoff_seconds, max_wait_seconds=self.max_wait_seconds
        )
        check_above(
            "judge.limits",
            0,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            total_timeout_seconds=self.total_timeout_seconds,
        )


class CutOffError(JudgeError):
    """A reply reached its maximum length."""


class JudgeClient:
    """Turns requests into parsed replies.

    Args:
        chat: The judging model.
        limits: Limits on the requests to it.
        cache: Stores replies; None for no cache. It runs in a separate thread, so that neither a slow disk
            nor a lock holds up the event loop.
        notice: Says when the run waits for the judge.
    """

    def __init__(
        self, chat: Chat, limits: Limits, cache: ReplyCache | None, notice: WaitNotice | None = None
    ) -> None:
        self.chat = chat
        self.limits = limits
        self.cache = cache
        self._notice = notice or WaitNotice()
        self._missing = 0
        self._shortened = False
        self._prepared = False
        self._shared: SharedFile | None = None

    def prepare(self) -> None:
        """Prepares the model, and finds the ranks that share the limits. All ranks must call it. Safe to call
        twice."""
        if self.offline:
            return
        self.chat.prepare()
        if not self._prepared:
            self._shared = None if self.chat.of_each_rank else share_file()
            self._prepared = True

    def close(self) -> None:
        """Releases what `prepare` set up."""
        self.chat.close()
        if self._shared is not None:
            self._shared.close()
        self._shared, self._prepared = None, False

    async def start(self, budget: Budget) -> None:
        """Opens the cache and the connections, on the event loop that will use them."""
        self._budget = budget
        self._slots = _slots(self.limits.concurrency, self._shared)
        self._requests = _limiter(self.limits.requests_per_minute, self._shared, 0)
        self._tokens = _limiter(self.limits.tokens_per_minute, self._shared, 1)
        self._resume_at = 0.0
        self._asked_to_wait: JudgeError | None = None
        self._under_way: dict[str, asyncio.Task[str]] = {}
        if self.cache is not None:
            self._disk = ThreadPoolExecutor(1, thread_name_prefix="judge-cache")
            await self._on_disk(self.cache.open)
        if not self.offline:
            await self.chat.start()
        self._watch = asyncio.create_task(self._notice.watch())

    async def stop(self) -> None:
        """Closes the cache and the connections."""
        tasks = [self._watch, *self._under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self.offline:
            await self.chat.stop()
        if self.cache is not None:
            await self._on_disk(self.cache.close)
            self._disk.shutdown()

    async def _on_disk(self, work: Callable[..., R], *arguments: Any) -> R:
        """Runs work on the cache in its thread. What has begun ends, even if the caller is canceled."""
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._disk, work, *arguments))

    def uncached(self) -> JudgeClient:
        """Returns a client of the same model that sends every request and stores no reply.

        Raises:
            ConfigError: this client sends no requests.
        """
        if self.offline:
            raise ConfigError(
                "judge.cache.mode: expected read_write, got offline: asking the judge again sends requests"
            )
        return JudgeClient(self.chat, self.limits, None)

    @property
    def offline(self) -> bool:
        """Whether replies come only from the cache."""
        return self.cache is not None and self.cache.offline

    async def ask(self, request: ChatRequest, read: Callable[[str], T], usage: Counter[str], name: str) -> T:
        """Returns the parsed reply.

        Args:
            request: The question.
            read: Parses the text of a reply; raises JudgeError if it is unusable.
            usage: Receives the calls, tokens, money and cache hits of the request, and its faults by cause.
            name: Names the question in the list of missing calls.

        Raises:
            PartialReply: no try gave verdicts on all answers; it is the reply that gave the most.
            JudgeError: the last try failed, or an offline cache has no reply.
            BudgetSpent: the budget is used up.
            ConfigError: no request can succeed.
        """
        key = self.key(request)
        kept = await self._on_disk(self.cache.get, key) if self.cache is not None else None
        if kept is not None:
            with suppress(JudgeError):  # cached by a version that accepted it: request it again
                found = read(kept)
                usage["cache_hits"] += 1
                return found
        if self.offline:
            usage["missing"] += 1
            self._missing += 1
            if self._missing <= MAX_LISTED:
                logger.warning("the judge's cache is offline and has no reply for %s", name)
            raise JudgeError(f"the judge's cache is offline and has no reply for {name}", "not_cached")
        if key in self._under_way:
            usage["shared"] += 1
        else:
            # A separate task, since the first caller may be canceled while others wait for the reply
            task = asyncio.create_task(self._fetch(key, request, read, usage))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return read(await asyncio.shield(self._under_way[key]))

    def key(self, request: ChatRequest) -> str:
        """Returns a hash of all that determines the reply: model, messages, schema, settings and seed."""
        parts = [
            self.chat.identity,
            [dict(message) for message in request.messages],
            request.schema,
            request.temperature,
            request.max_tokens,
            request.seed,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    async def _fetch(
        self, key: str, request: ChatRequest, read: Callable[[str], T], usage: Counter[str]
    ) -> str:
        last: JudgeError | None = None
        fullest: PartialReply | None = None
        cut_off = 0
        backoff = wait_random_exponential(multiplier=self.limits.backoff_seconds, max=60)

        def wait(state: RetryCallState) -> float:
            asked = last.retry_after if last is not None else 0.0
            return max(min(asked, self.limits.max_wait_seconds), backoff(state))

        tries = AsyncRetrying(
            stop=stop_after_attempt(self.limits.tries),
            wait=wait,
            retry=retry_if_exception(lambda error: isinstance(error, JudgeError) and error.retry),
            reraise=True,
        )
        self._notice.began()
        try:
            async with asyncio.timeout(None) as deadline:  # `_try` sets it
                async for attempt in tries:
                    with attempt:
                        try:
                            reply = await self._try(request, usage, deadline)
                            read(reply.text)
                        except JudgeError as error:
                            last = error
                            if isinstance(error, PartialReply):
                                fullest = max(fullest or error, error, key=lambda one: one.answers)
                            if isinstance(error, CutOffError):
                                cut_off += 1  # greedy, the same question hardly has a shorter reply
                                error.retry = cut_off < 2 or request.temperature > 0
                            self._notice.failed(error, min(error.retry_after, self.limits.max_wait_seconds))
                            usage[f"fault_{error.cause}"] += 1
                            raise
        except JudgeError as error:
            if fullest is None or fullest is error:
                raise
            raise fullest from error
        except TimeoutError as error:
            if fullest is not None:
                raise fullest from error
            last = last or self._asked_to_wait or JudgeError("no try was made", "timeout")
            raise JudgeError(
                f"no usable reply within {self.limits.total_timeout_seconds:g} s; last error: {last}",
                last.cause,
            ) from error
        finally:
            self._notice.ended()
        self._notice.replied()
        if self.cache is not None:
            await self._on_disk(self.cache.put, key, reply.text)
        return reply.text

    async def _try(self, request: ChatRequest, usage: Counter[str], deadline: asyncio.Timeout) -> ChatReply:
        """Sends a request once, as soon as the limits allow it."""
        loop = asyncio.get_running_loop()
        if self._requests is not None:
            await self._requests.acquire()
        if self._tokens is not None:
            length = sum(len(message["content"]) for message in request.messages)
            guess = length / CHARACTERS_PER_TOKEN + request.max_tokens / 2
            await self._tokens.acquire(min(guess, self._tokens.max_rate))
        async with self._slots:
            if deadline.when() is None:
                deadline.reschedule(loop.time() + self.limits.total_timeout_seconds)
            while (pause := self._resume_at - loop.time()) > 0:  # the endpoint sent a Retry-After
                await asyncio.sleep(pause)
            self._budget.reserve_call()
            usage["calls"] += 1
            try:
                reply = await self.chat.complete(request)
            except JudgeError as error:
                self._pause_all(error)
                raise
        tokens = reply.prompt_tokens + reply.completion_tokens
        self._budget.add(tokens, reply.cost)
        usage.update({"tokens": tokens, "cost": reply.cost})
        if reply.refusal:
            raise JudgeError(f"the judge refused: {reply.refusal}", "refused")
        if reply.cut_off:
            raise CutOffError(
                f"the reply was cut off after {request.max_tokens} tokens; raise judge.max_tokens",
                "malformed",
                retry=True,
            )
        return reply

    def _pause_all(self, error: JudgeError) -> None:
        """Makes all requests wait as long as an endpoint asks for, within the limit."""
        pause, longest = error.retry_after, self.limits.max_wait_seconds
        if not pause:
            return
        self._asked_to_wait = error
        self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + min(pause, longest))
        if pause > longest and not self._shortened:
            self._shortened = True
            logger.warning(
                "the judge's endpoint asks for a pause of %.0f s; herl tries again after %g s "
                "(judge.limits.max_wait_seconds)",
                pause,
                longest,
            )


def _slots(concurrency: int, shared: SharedFile | None) -> asyncio.Semaphore | SharedSlots:
    """Limits the requests in flight, of this rank or of those that share a file."""
    if shared is None:
        return asyncio.Semaphore(concurrency)
    return SharedSlots(shared, concurrency)


def _limiter(
    per_minute: float | None, shared: SharedFile | None, bucket: int
) -> AsyncLimiter | SharedRate | None:
    """Limits this rank, or those that share a file, to their part of the run's rate."""
    if per_minute is None:
        return None
    ranks = shared.ranks if shared is not None else 1
    part = per_minute * ranks / world_size()
    capacity, seconds = max(part, 1.0), 60.0 * max(1.0, 1.0 / part)  # a limiter must have room for 1
    if shared is None:
        return AsyncLimiter(capacity, seconds)
    return SharedRate(shared, bucket, capacity, seconds)
