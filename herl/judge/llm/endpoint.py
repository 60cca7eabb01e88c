"""A judging model behind an OpenAI-compatible HTTP endpoint: a hosted service, `vllm serve`, or any other.

The key comes from an environment variable that the configuration names. It is sent only to the endpoint,
and is removed from everything the endpoint returns. Each call is a single try: `JudgeClient` handles
retries, limits and the cache.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
import openai

from herl.errors import ConfigError, JudgeError, check_above, check_at_least
from herl.judge.llm.chat import Chat, ChatReply, ChatRequest

logger = logging.getLogger(__name__)
Structured = Literal["auto", "json_schema", "json_object", "none"]
MILLION = 1_000_000


class Endpoint(Chat):
    """Requests chat completions through openai's client.

    Args:
        base_url: For example https://api.openai.com/v1 or http://node7:8000/v1.
        model: The endpoint's name for the model.
        api_key_env: Name of the environment variable that holds the key; None if no key is needed.
        structured: How the format of replies is enforced: by `json_schema`, as any `json_object`, or
            `none`; `auto` sends the schema until the endpoint rejects it.
        prompt_price: Money per million tokens read.
        completion_price: Money per million tokens written.
        try_timeout_seconds: Time limit for one try.
        token_limit_key: The endpoint's name for the limit on reply length. Some hosted models require
            max_completion_tokens.
        extra_body: Extra fields for every request, such as {reasoning_effort: low}.
        identity: Name of the model in the cache; None for its URL, name and extra fields. Set it if the
            model's address changes.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        structured: Structured = "auto",
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
        try_timeout_seconds: float = 60.0,
        token_limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: Mapping[str, Any] | None = None,
        identity: str | None = None,
    ) -> None:
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or "@" in address.netloc or address.query:
            raise ConfigError(
                "judge.chat.base_url: expected an http or https URL without user, password or query, got "
                f"another URL for {address.hostname}. Put the key into an environment variable, and name "
                "that variable in judge.chat.api_key_env"
            )
        if api_key_env is not None and not os.environ.get(api_key_env):
            raise ConfigError(f"judge.chat.api_key_env: the environment variable {api_key_env} is not set")
        check_at_least("judge.chat", 0, prompt_price=prompt_price, completion_price=completion_price)
        check_above("judge.chat", 0, try_timeout_seconds=try_timeout_seconds)
        self.base_url = base_url
        self.model = model
        self.structured = structured
        self._format: Structured = structured  # auto becomes none once the endpoint rejects a schema
        self._key = os.environ[api_key_env] if api_key_env else ""
        self._prices = prompt_price / MILLION, completion_price / MILLION
        self._timeout = try_timeout_seconds
        self._token_limit_key = token_limit_key
        self._extra = dict(extra_body or {})
        self._identity = identity
        self._client: openai.AsyncOpenAI | None = None

    @property
    def identity(self) -> str:
        """URL, model, `structured` and extra fields, unless a name was given."""
        return (
            self._identity or f"{self.base_url} {self.model} {self.structured} {sorted(self._extra.items())}"
        )

    async def start(self) -> None:
        """Opens a connection pool."""
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self.base_url,
            max_retries=0,
            timeout=self._timeout,
            http_client=openai.DefaultAioHttpClient(timeout=self._timeout),
        )

    async def stop(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Returns the reply to one request, tried once.

        Raises:
            JudgeError: the cause is timeout, connection, rate_limit, server, refused or malformed.
            ConfigError: the key or the model is wrong, or the account is out of credit.
        """
        used = self._format
        try:
            reply = await self._post(request)
        except openai.BadRequestError as error:
            if used != "auto" or not _is_about_format(error):
                raise self._refusal(error) from error
            if self._format == "auto":
                logger.warning("the judge's endpoint rejects JSON schemas; replies are parsed as plain text")
                self._format = "none"
            return await self.complete(request)
        return self._reply(reply)

    async def _post(self, request: ChatRequest) -> Any:
        assert self._client is not None, "start the endpoint first"
        body = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "temperature": request.temperature,
            self._token_limit_key: request.max_tokens,
            "seed": request.seed,
        }
        if self._format in ("auto", "json_schema"):
            form = {"name": "judgement", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif self._format == "json_object":
            body["response_format"] = {"type": "json_object"}
        try:
            # post() instead of chat.completions.create(): plain dicts take half the CPU time per call
            return await self._client.post("/chat/completions", cast_to=object, body=body | self._extra)
        except openai.APIConnectionError as error:
            if _is_timeout(error):
                raise JudgeError(f"no reply within {self._timeout:g} s", "timeout", retry=True) from error
            root = _causes(error)[-1]
            detail = self._clean(str(root) or type(root).__name__)
            raise JudgeError(
                f"connection to {self.base_url} failed: {detail}", "connection", retry=True
            ) from error
        except openai.BadRequestError:
            raise
        except openai.APIStatusError as error:
            raise self._status_error(error) from error
        except (openai.APIResponseValidationError, ValueError) as error:
            detail = self._clean(str(error))
            raise JudgeError(
                f"the endpoint did not reply in JSON: {detail}", "malformed", retry=True
            ) from error

    def _status_error(self, error: openai.APIStatusError) -> JudgeError | ConfigError:
        detail = f"HTTP {error.status_code}: {self._clean(error.message)}"
        if error.status_code in (401, 404) or error.code == "insufficient_quota":
            return ConfigError(
                f"the judge's endpoint {self.base_url} rejects requests for model '{self.model}': {detail}"
            )
        if error.status_code == 429:
            wait = _retry_after(error.response.headers)
            return JudgeError(detail, "rate_limit", retry=True, retry_after=wait)
        if error.status_code >= 500 or error.status_code in (408, 409):
            wait = _retry_after(error.response.headers)
            return JudgeError(detail, "server", retry=True, retry_after=wait)
        return self._refusal(error)

    def _refusal(self, error: openai.APIStatusError) -> JudgeError:
        return JudgeError(f"HTTP {error.status_code}: {self._clean(error.message)}", "refused")

    def _reply(self, reply: Any) -> ChatReply:
        try:
            choice = reply["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content"), message.get("refusal")
            usage = reply.get("usage") or {}
            read, written = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            got = self._clean(str(reply))
            raise JudgeError(f"expected a chat completion, got {got}", "malformed", retry=True) from error
        if not refusal and choice.get("finish_reason") == "content_filter":
            refusal = "content filter"
        return ChatReply(
            text=text if isinstance(text, str) else "",  # null if a reasoning model ran out of tokens
            refusal=self._clean(str(refusal)) if refusal else "",
            prompt_tokens=read,
            completion_tokens=written,
            cost=read * self._prices[0] + written * self._prices[1],
        )

    def _clean(self, text: str) -> str:
        """Shortens text from the endpoint and removes the key, which some endpoints repeat."""
        return (text.replace(self._key, "[key]") if self._key else text)[:300]


def _causes(error: BaseException) -> list[BaseException]:
    """An error and its chain of causes, down to the root."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain


def _is_timeout(error: openai.APIConnectionError) -> bool:
    """Whether time ran out: openai's aiohttp client also reports lost connections as timeouts."""
    causes = _causes(error)
    lost = any(isinstance(cause, aiohttp.ClientConnectionError | OSError) for cause in causes)
    late = any(isinstance(cause, TimeoutError) for cause in causes)
    return isinstance(error, openai.APITimeoutError) and (late or not lost)


def _is_about_format(error: openai.APIStatusError) -> bool:
    message = error.message.lower()
    return any(
        word in message for word in ("response_format", "json_schema", "schema", "guided", "structured")
    )


def _retry_after(headers: Mapping[str, str]) -> float:
    """The wait in seconds from the Retry-After header, which holds seconds or a date; 0 without a header."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
