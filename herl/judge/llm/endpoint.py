"""A judging model behind an OpenAI-compatible HTTP endpoint: a hosted service, `vllm serve`, or any other.

The key comes from an environment variable that the configuration names. It is sent only to the endpoint,
and is removed from everything the endpoint returns. Each call is a single try: `JudgeClient` handles
retries, limits and the cache.

An endpoint that refuses a field of the request gets its requests without that field for the rest of the run.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import aiohttp
import openai

from herl.errors import ConfigError, JudgeError, check_above, check_at_least, variable
from herl.judge.llm.bounded_http import BoundedClient, Redirected, retry_after
from herl.judge.llm.chat import Chat, ChatReply, ChatRequest
from herl.judge.llm.completion import read_completion
from herl.judge.llm.refusal import ESSENTIAL, REFUSED, TOKEN_LIMITS, Refusal

logger = logging.getLogger(__name__)
Structured = Literal["auto", "json_schema", "json_object", "none"]
MILLION = 1_000_000
CONSEQUENCES = {
    "response_format": "replies are parsed as plain text",
    "temperature": "replies are sampled at the endpoint's own temperature",
    "seed": "the endpoint's replies cannot be repeated",
} | dict.fromkeys(TOKEN_LIMITS, "the endpoint's own limit on the length of replies applies")


@dataclass(frozen=True, slots=True)
class Form:
    """Which fields the endpoint accepts, as far as its refusals have told."""

    token_limit_key: str
    left_out: frozenset[str] = frozenset()

    def without(self, fields: list[str]) -> Form:
        """Returns the form without these fields. The limit on tokens moves to its other name once."""
        form = replace(self, left_out=self.left_out | set(fields))
        if form.token_limit_key in form.left_out:
            form = replace(form, token_limit_key=TOKEN_LIMITS[form.token_limit_key == TOKEN_LIMITS[0]])
        return form


class Refused(Exception):
    """The endpoint refused a request with these words."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.words)
        self.refusal = refusal


class Endpoint(Chat):
    """Requests chat completions through openai's client.

    Args:
        base_url: For example https://api.openai.com/v1 or http://node7:8000/v1.
        model: The endpoint's name for the model.
        api_key_env: Name of the environment variable that holds the key; None if no key is needed.
        structured: How the format of replies is enforced: by `json_schema`, as any `json_object`, or
            `none`; `auto` sends the schema unless the endpoint refuses it.
        prompt_price: Money per million tokens read.
        completion_price: Money per million tokens written.
        try_timeout_seconds: Time limit for one try, from connecting to the last byte of the reply.
        token_limit_key: The endpoint's name for the limit on reply length. The other name is used if the
            endpoint refuses this one.
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
        if "://" not in base_url:
            raise ConfigError(
                "judge.chat.base_url: expected a URL such as http://localhost:8000/v1, got one without http://"
            )
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or "@" in address.netloc or address.query:
            raise ConfigError(
                "judge.chat.base_url: expected an http or https URL without user, password or query, got "
                f"another URL for {address.hostname}. Put the key into an environment variable, and name "
                "that variable in judge.chat.api_key_env"
            )
        check_at_least("judge.chat", 0, prompt_price=prompt_price, completion_price=completion_price)
        check_above("judge.chat", 0, try_timeout_seconds=try_timeout_seconds)
        self.base_url = base_url
        self.model = model
        self.structured = structured
        self._form = Form(token_limit_key)
        self._accepted = False  # whether a request in this form has had a reply
        self._warned_of_usage = False
        self._key = variable("judge.chat.api_key_env", api_key_env)
        self._prices = prompt_price / MILLION, completion_price / MILLION
        self._timeout = try_timeout_seconds
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
        """Opens a connection pool. What the endpoint has refused so far stays known."""
        self._finding = asyncio.Lock()
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self.base_url,
            max_retries=0,
            timeout=self._timeout,
            http_client=BoundedClient(self._timeout, self.base_url),
        )

    async def stop(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Returns the reply to one request, tried once, and sent again without the fields that are refused.

        Raises:
            JudgeError: the cause is timeout, connection, rate_limit, server, refused or malformed.
            ConfigError: the endpoint refuses every request: the key or the model is wrong, the account is out
                of credit, or leaving out fields does not help. The message has the endpoint's own words.
        """
        form = self._form
        try:
            reply = await self._send(request, form)
        except Refused as error:
            refusal = error.refusal
        else:
            self._accepted = True
            return self._reply(reply)
        if refusal.about_answer:
            raise self._rejection(refusal)
        async with self._finding:  # of the requests in flight, one finds out what the others may send
            if self._form == form:
                return self._reply(await self._find_form(request, refusal))
        return await self.complete(request)

    async def _find_form(self, request: ChatRequest, refusal: Refusal) -> Any:
        """Leaves out what is refused, until there is a reply.

        Raises:
            JudgeError, ConfigError: it is refused however little is sent.
        """
        form, known = self._form, self._accepted
        while True:
            sent = self._body(request, form)
            fields, placed = self._to_leave_out(refusal, sent, guess=not known)
            if not fields:
                raise self._rejection(refusal)
            self._check_forced(fields, refusal)
            form = form.without(fields)
            if placed or (refusal.names(sent, self.model)[0] and not known):
                self._adopt(form, refusal)
            try:
                reply = await self._send(request, form)
            except Refused as error:
                refusal = error.refusal
                if refusal.about_answer:
                    raise self._rejection(refusal) from None
                continue
            self._adopt(form, refusal)
            self._accepted = True
            return reply

    def _to_leave_out(self, refusal: Refusal, sent: Mapping[str, Any], guess: bool) -> tuple[list[str], bool]:
        """The fields to leave out next, and whether the endpoint names them in a separate field.

        A field that is not named is guessed, one at a time, but only before the endpoint's first reply.
        Later, the cause is this answer.
        """
        if refusal.status not in REFUSED or refusal.about_access:
            return [], False
        fields, placed = refusal.names(sent, self.model)
        if not fields and guess and refusal.may_be_a_field:
            order = ("response_format", *self._extra, "seed", "temperature", *TOKEN_LIMITS)
            fields = [name for name in order if name in sent and name not in ESSENTIAL][:1]
        return fields, placed

    def _check_forced(self, fields: list[str], refusal: Refusal) -> None:
        forced = self.structured != "auto" and "response_format" not in self._extra
        if forced and "response_format" in fields:
            raise ConfigError(
                f"judge.chat.structured: expected an endpoint that accepts {self.structured}, but "
                f"{self.base_url} refuses it: {self._quoted(refusal)}. Use structured=auto or structured=none"
            )

    def _adopt(self, form: Form, refusal: Refusal) -> None:
        """Leaves out these fields for the rest of the run, and says so once."""
        fields = sorted(form.left_out - self._form.left_out)
        if not fields:
            return
        effects = [
            f"{form.token_limit_key} takes its place" if _moved(name, form) else CONSEQUENCES[name]
            for name in fields
            if name in CONSEQUENCES
        ]
        logger.warning(
            "the judge's endpoint %s refuses %s, which later requests leave out%s. It says: %s",
            self.base_url,
            " and ".join(fields),
            "".join(f"; {effect}" for effect in effects),
            self._quoted(refusal),
        )
        self._form = form

    def _rejection(self, refusal: Refusal) -> JudgeError | ConfigError:
        """What a refusal means if nothing can be left out: for this answer alone, or for every request."""
        if self._accepted and refusal.may_pass:
            passing = refusal.status == 404
            return JudgeError(self._quoted(refusal), "server" if passing else "refused", retry=passing)
        lasting = refusal.about_access or refusal.status == 404 or not self._accepted
        if refusal.about_answer or not lasting:
            return JudgeError(self._quoted(refusal), "refused")
        return ConfigError(
            f"the judge's endpoint {self.base_url} rejects requests for model '{self.model}': "
            f"{self._quoted(refusal).rstrip('.')}. Check judge.chat: {_remedy(refusal)}"
        )

    def _body(self, request: ChatRequest, form: Form) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "temperature": request.temperature,
            form.token_limit_key: request.max_tokens,
            "seed": request.seed,
        }
        if self.structured in ("auto", "json_schema"):
            schema = {"name": "judgement", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return {name: value for name, value in (body | self._extra).items() if name not in form.left_out}

    async def _send(self, request: ChatRequest, form: Form) -> Any:
        """Returns the parsed reply.

        Raises:
            Refused: by a status that another try will not change.
            JudgeError, ConfigError: as `complete`.
        """
        assert self._client is not None, "start the endpoint first"
        try:
            # post() instead of chat.completions.create(): plain dicts take half the CPU time per call
            async with asyncio.timeout(self._timeout):  # of the whole try: the client's own is for each read
                reply = await self._client.post(
                    "/chat/completions", cast_to=object, body=self._body(request, form)
                )
        except TimeoutError as error:
            raise JudgeError(f"no reply within {self._timeout:g} s", "timeout", retry=True) from error
        except Redirected as redirect:
            raise self._redirected(redirect.address) from None
        except openai.APIConnectionError as error:
            if _is_timeout(error):
                raise JudgeError(f"no reply within {self._timeout:g} s", "timeout", retry=True) from error
            root = _causes(error)[-1]
            detail = self._clean(str(root) or type(root).__name__)
            raise JudgeError(
                f"connection to {self.base_url} failed: {detail}", "connection", retry=True
            ) from error
        except openai.APIStatusError as error:  # from None: the chained error would show the key
            refusal = Refusal.of(error.status_code, _text(error))
            raise self._status_error(refusal, error.response.headers) from None
        except (openai.APIResponseValidationError, ValueError, RecursionError) as error:
            detail = self._clean(str(error))
            raise JudgeError(
                f"the endpoint did not reply in JSON: {detail}", "malformed", retry=True
            ) from None
        if isinstance(reply, Mapping) and reply.get("error") and not reply.get("choices"):
            raise self._status_error(Refusal.of(_code(reply["error"]), reply), {})
        return reply

    def _redirected(self, address: str) -> JudgeError | ConfigError:
        """What a redirect means: prompts go to no host but the one that was configured."""
        said = f"the judge's endpoint {self.base_url} redirects to {address}, which is not followed"
        if self._accepted:
            return JudgeError(said, "connection", retry=True)
        return ConfigError(f"judge.chat.base_url: {said}. If you trust that host, name it in base_url")

    def _status_error(
        self, refusal: Refusal, headers: Mapping[str, str]
    ) -> JudgeError | ConfigError | Refused:
        status = refusal.status
        if status == 429 and "insufficient_quota" not in refusal.code:
            cause = "rate_limit"
        elif (status >= 500 and status != 501) or status in (408, 409, 425):
            cause = "server"
        else:
            return Refused(refusal)
        return JudgeError(self._quoted(refusal), cause, retry=True, retry_after=retry_after(headers))

    def _reply(self, reply: Any) -> ChatReply:
        try:
            read = read_completion(reply)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            try:
                got = self._clean(str(reply))
            except RecursionError:
                got = "JSON that is nested too deeply"
            raise JudgeError(f"expected a chat completion, got {got}", "malformed", retry=True) from None
        if not (read.prompt_tokens or read.completion_tokens) and not self._warned_of_usage:
            self._warned_of_usage = True
            logger.warning(
                "the judge's endpoint %s reports no usage; its tokens and their cost count as 0",
                self.base_url,
            )
        cost = read.prompt_tokens * self._prices[0] + read.completion_tokens * self._prices[1]
        return replace(read, refusal=self._clean(read.refusal), cost=cost)

    def _quoted(self, refusal: Refusal) -> str:
        return f"HTTP {refusal.status}: {self._clean(refusal.words) or 'no words'}"

    def _clean(self, text: str) -> str:
        """Shortens text from the endpoint and removes the key, which some endpoints repeat."""
        if self._key:
            for form in {self._key, quote(self._key, safe=""), json.dumps(self._key)[1:-1]}:
                text = text.replace(form, "[key]")
        return text[:300]


def _moved(name: str, form: Form) -> bool:
    """Whether this is the limit on tokens, which goes on under its other name."""
    return name in TOKEN_LIMITS and form.token_limit_key not in form.left_out


def _text(error: openai.APIStatusError) -> Any:
    try:
        return error.response.text
    except RuntimeError:  # the body was not read
        return error.body


def _code(error: Any) -> int:
    """The status of an error that came with HTTP 200; 500 if it has none."""
    code = error.get("code") if isinstance(error, Mapping) else None
    if isinstance(code, str) and code.isdecimal():
        code = int(code)
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _remedy(refusal: Refusal) -> str:
    if refusal.status in (401, 403):
        return "api_key_env names the variable with the key"
    if refusal.status in (402, 429):
        return "the account needs credit"
    if refusal.status == 404 or refusal.about_access:
        return "base_url and model"
    return "model, structured and extra_body"


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
