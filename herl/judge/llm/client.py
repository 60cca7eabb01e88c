"""Sends requests to a judging model: cached, shared, limited, retried, and paid for from a budget.

A reply counts only once it could be read: what cannot be parsed is asked for again, and is never cached.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from herl.distributed import world_size
from herl.errors import JudgeError, check_above, check_at_least
from herl.judge.budget import Budget
from herl.judge.llm.chat import Chat, ChatReply, ChatRequest
from herl.judge.llm.reply_cache import ReplyCache

logger = logging.getLogger(__name__)
T = TypeVar("T")
CHARACTERS_PER_TOKEN = 4
"""A rough guess, for the limit of tokens per minute before the endpoint has counted."""
MOST_LISTED = 100
"""Calls missing in an offline cache that are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How hard a judging model may be pressed. Rates hold for the whole run: ranks share them.

    Args:
        concurrency: Requests under way at the same time, in each rank.
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit. Guessed from the length of what is sent.
        tries: Times that one request is sent before it abstains.
        backoff_seconds: Longest wait before the second try; it doubles for each further one, with jitter. An
            endpoint's Retry-After is honoured for all requests.
        total_timeout_seconds: How long one request may take with all its tries, once it was first sent.
    """

    concurrency: int = 32
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    tries: int = 6
    backoff_seconds: float = 1.0
    total_timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        check_at_least("judge.limits", 1, concurrency=self.concurrency, tries=self.tries)
        check_at_least("judge.limits", 0, backoff_seconds=self.backoff_seconds)
        check_above(
            "judge.limits",
            0,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            total_timeout_seconds=self.total_timeout_seconds,
        )


class Asker:
    """The way from a request to a reply that could be read.

    Args:
        chat: Who replies.
        limits: How hard it may be pressed.
        cache: Where replies are kept; None to keep none.
    """

    def __init__(self, chat: Chat, limits: Limits, cache: ReplyCache | None) -> None:
        self.chat = chat
        self.limits = limits
        self.cache = cache
        self._missing = 0

    async def start(self, budget: Budget) -> None:
        """Opens cache and connections, on the event loop that will use them."""
        self._budget = budget
        self._slots = asyncio.Semaphore(self.limits.concurrency)
        self._requests = _limiter(self.limits.requests_per_minute)
        self._tokens = _limiter(self.limits.tokens_per_minute)
        self._resume_at = 0.0
        self._under_way: dict[str, asyncio.Task[str]] = {}
        if self.cache is not None:
            self.cache.open()
        if not self.offline:
            await self.chat.start()

    async def stop(self) -> None:
        """Closes what `start` opened."""
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        if not self.offline:
            await self.chat.stop()
        if self.cache is not None:
            self.cache.close()

    @property
    def offline(self) -> bool:
        """Whether replies come from the cache alone."""
        return self.cache is not None and self.cache.offline

    async def ask(self, request: ChatRequest, read: Callable[[str], T], usage: Counter[str], name: str) -> T:
        """Returns what `read` makes of the reply.

        Args:
            request: The question.
            read: The text of a reply -> what it says; raises JudgeError for one that says nothing usable.
            usage: Takes what the request cost, in calls, tokens, money, cache hits and faults by cause.
            name: What the question is about, for the list of missing calls.

        Raises:
            JudgeError: the last try failed, or an offline cache has no reply.
            BudgetSpent: there is nothing left to pay it.
            ConfigError: no request can succeed.
        """
        key = self.key(request)
        kept = self.cache.get(key) if self.cache is not None else None
        if kept is not None:
            with suppress(JudgeError):  # written by a version that read more: ask again
                found = read(kept)
                usage["cache_hits"] += 1
                return found
        if self.offline:
            usage["missing"] += 1
            self._missing += 1
            if self._missing <= MOST_LISTED:
                logger.warning("not in the judge's cache, which is offline: %s", name)
            raise JudgeError(f"not in the cache, which is offline: {name}", "not_cached")
        if key in self._under_way:
            usage["shared"] += 1
        else:
            # A task of its own: the one who asked first may be cancelled while others wait for the reply
            task = asyncio.create_task(self._fetch(key, request, read, usage))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return read(await asyncio.shield(self._under_way[key]))

    def key(self, request: ChatRequest) -> str:
        """Returns the hash of all that decides the reply: model, prompt with its words, settings, seed."""
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
        last = JudgeError("no try was made", "timeout")
        backoff = wait_random_exponential(multiplier=self.limits.backoff_seconds, max=60)

        def wait(state: RetryCallState) -> float:
            return max(last.retry_after, backoff(state))

        tries = AsyncRetrying(
            stop=stop_after_attempt(self.limits.tries),
            wait=wait,
            retry=retry_if_exception(lambda error: isinstance(error, JudgeError) and error.retry),
            reraise=True,
        )
        try:
            async with asyncio.timeout(None) as deadline:  # it runs from the first sending on
                async for attempt in tries:
                    with attempt:
                        try:
                            reply = await self._try(request, usage, deadline)
                            read(reply.text)
                        except JudgeError as error:
                            last = error
                            usage[f"fault_{error.cause}"] += 1
                            raise
        except TimeoutError as error:
            raise JudgeError(
                f"no usable reply within {self.limits.total_timeout_seconds:g} s; last: {last}", last.cause
            ) from error
        if self.cache is not None:
            self.cache.put(key, reply.text)
        return reply.text

    async def _try(self, request: ChatRequest, usage: Counter[str], deadline: asyncio.Timeout) -> ChatReply:
        """Sends a request once, when there is room for it."""
        loop = asyncio.get_running_loop()
        if self._requests is not None:
            await self._requests.acquire()
        if self._tokens is not None:
            length = sum(len(message["content"]) for message in request.messages)
            guess = length / CHARACTERS_PER_TOKEN + request.max_tokens / 2
            await self._tokens.acquire(min(guess, self._tokens.max_rate))
        async with self._slots:
            while (pause := self._resume_at - loop.time()) > 0:  # somebody was told to wait
                await asyncio.sleep(pause)
            if deadline.when() is None:
                deadline.reschedule(loop.time() + self.limits.total_timeout_seconds)
            self._budget.reserve_call()
            usage["calls"] += 1
            try:
                reply = await self.chat.complete(request)
            except JudgeError as error:
                if error.retry_after:
                    self._resume_at = max(self._resume_at, loop.time() + error.retry_after)
                raise
        tokens = reply.prompt_tokens + reply.completion_tokens
        self._budget.add(tokens, reply.cost)
        usage.update({"tokens": tokens, "cost": reply.cost})
        if reply.refusal:
            raise JudgeError(f"the judge declines: {reply.refusal}", "refused")
        return reply


def _limiter(per_minute: float | None) -> AsyncLimiter | None:
    """This rank's share of a rate."""
    if per_minute is None:
        return None
    share = per_minute / world_size()
    return AsyncLimiter(max(share, 1.0), 60.0 * max(1.0, 1.0 / share))  # it cannot hold less than one
