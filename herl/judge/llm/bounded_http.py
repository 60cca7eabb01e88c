"""An HTTP client for endpoints that cannot be trusted: replies of a limited size, and no redirects.

`Endpoint` adds the time limit of each try. What a reply says is read elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import openai

from herl.errors import JudgeError

if TYPE_CHECKING:
    import httpx2

MAX_BYTES = 16 * 2**20
"""Largest reply, unpacked. A long reply with the log probabilities of twenty alternatives to each token has
about 5 MB."""
ENCODINGS = ("gzip", "deflate", "identity")
"""Encodings that unpack to at most about a thousand times what has been received; others may to any size."""


class Redirected(Exception):
    """The endpoint sends the request, and the prompt in it, to another address.

    Args:
        address: Scheme, host and port of that address. Its path and query may hold secrets.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


class BoundedClient(openai.DefaultAioHttpClient):
    """openai's client on aiohttp, which reads at most `MAX_BYTES` and follows no redirect.

    Args:
        timeout: Seconds for each step of a request; the caller limits the whole.
        base_url: Where the requests go. No proxy that the environment names, as in HTTP_PROXY, gets those to
            this machine itself.
    """

    def __init__(self, timeout: float, base_url: str) -> None:
        super().__init__(
            timeout=timeout,
            follow_redirects=False,
            headers={"Accept-Encoding": ", ".join(ENCODINGS[:2])},
            trust_env=not is_loopback(base_url),
        )

    async def send(
        self, request: httpx2.Request, *, stream: bool = False, **settings: Any
    ) -> httpx2.Response:
        """Returns the reply, which has been read.

        Raises:
            Redirected: the reply is a redirect.
            JudgeError: the reply is too large, packed in a way that was not asked for, or no HTTP.
        """
        settings["follow_redirects"] = False
        try:
            response = await super().send(request, stream=True, **settings)
        except aiohttp.ClientResponseError as error:  # with the bytes, which may repeat the key
            said = error.message.partition("\n")[0].rstrip(":")
            raise JudgeError(f"the endpoint did not reply in HTTP: {said}", "malformed", retry=True) from None
        try:
            if response.has_redirect_location:
                raise Redirected(_address(str(request.url), response.headers["location"]))
            content = await _content(response)
        finally:
            await response.aclose()
        headers = [
            (name, value)
            for name, value in response.headers.multi_items()
            if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
        ]
        made: httpx2.Response = type(response)(
            response.status_code, headers=headers, content=content, request=request
        )
        return made


def is_loopback(url: str) -> bool:
    """Returns whether a URL leads to this machine itself.

    >>> [is_loopback(f"http://{host}/v1") for host in ("localhost:8000", "0.0.0.0", "[::1]", "node7")]
    [True, True, True, False]
    """
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified
    except ValueError:  # a name
        return host == "localhost" or host.endswith(".localhost")


async def _content(response: httpx2.Response) -> bytes:
    packed = response.headers.get("content-encoding", "identity").strip().lower()
    if packed not in ENCODINGS:
        raise JudgeError(
            f"the endpoint packs its reply as {packed[:40]!r}; expected {' or '.join(ENCODINGS)}",
            "malformed",
            retry=True,
        )
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_BYTES:
            raise JudgeError(
                f"expected a reply of at most {MAX_BYTES / 2**20:g} MiB, got more", "malformed", retry=True
            )
        parts.append(part)
    return b"".join(parts)


def _address(asked: str, location: str) -> str:
    """Scheme, host and port of a redirect, which may be relative to what was asked for."""
    try:
        address = urlsplit(urljoin(asked, location))
        port = f":{address.port}" if address.port else ""
        return f"{address.scheme}://{address.hostname}{port}"
    except ValueError:
        return "an address that cannot be read"


def retry_after(headers: Mapping[str, str]) -> float:
    """Returns the wait in seconds from the Retry-After header, which holds seconds or a date.

    0 without a header, or with one that cannot be read.
    """
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
