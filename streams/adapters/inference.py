"""Calls an OpenAI-style server over HTTP, with kept-alive connections and every bound enforced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from streams.domain.outcome.judge import Answer
from streams.domain.upstreams import Upstream, UpstreamTableError
from streams.ports.inference import (
    BadAnswerError,
    BlipError,
    InferenceError,
    TimedOutError,
    TooLargeError,
    UnreachableError,
)

#: The API version stands in the table's base_url, and in the lines' paths too.
_VERSION = "/v1"
#: Callers use a handful of paths; more than this are not remembered.
_MAX_PATHS = 64
#: Some servers ask whether the caller understands events before they send any.
_EVENTS_TOO = {"Accept": "application/json, text/event-stream"}
#: Name look-ups are remembered for so long, which bounds how long a moved server is missed.
_DNS_CACHE_S = 30


class HTTPInferenceClient:
    """An InferenceClient over aiohttp. Make it where a loop runs."""

    def __init__(
        self, upstream: Upstream, connections: int, environment: Mapping[str, str]
    ) -> None:
        """`connections`: most calls at once. Raises UpstreamTableError if the key is missing."""
        self._base_url = _with_version(upstream.base_url)
        self._max_response_bytes = upstream.max_response_bytes
        self._urls: dict[str, URL] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, ttl_dns_cache=_DNS_CACHE_S),
            headers=request_headers(upstream, environment),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=upstream.request_timeout_s, sock_connect=upstream.connect_timeout_s
            ),
            trust_env=False,
        )

    async def send(self, path: str, body: bytes) -> Answer:
        """See InferenceClient.send."""
        answering = False
        try:
            async with self._session.post(
                self._url(path), data=body, allow_redirects=False
            ) as response:
                answering = True
                content = await self._read(response)
        except TimeoutError as error:
            raise _timed_out(error) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Not chained: aiohttp's errors can hold parts of a URL or of an answer.
            raise _translated(error, answering) from None
        return _answer(response, content)

    @asynccontextmanager
    async def open(self, path: str, body: bytes) -> AsyncIterator[HTTPStream]:
        """See InferenceClient.open."""
        try:
            response = await self._session.post(
                self._url(path), data=body, allow_redirects=False, headers=_EVENTS_TOO
            )
        except TimeoutError as error:
            raise _timed_out(error) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _translated(error, answering=False) from None
        try:
            yield HTTPStream(response, self._max_response_bytes)
        finally:
            # An answer that was read to its end has given its connection back already.
            response.close()

    async def close(self) -> None:
        """See InferenceClient.close."""
        await self._session.close()

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._max_response_bytes
        announced = response.content_length
        if announced is not None and announced > limit:
            raise TooLargeError
        stream = response.content
        first = await stream.readany()
        if stream.at_eof() and len(first) <= limit:
            return first
        parts, size = [first], len(first)
        while size <= limit:
            part = await stream.readany()
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
        raise TooLargeError

    def _url(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            url = URL(self._base_url + path.removeprefix(_VERSION))
            if len(self._urls) < _MAX_PATHS:
                self._urls[path] = url
        return url


class HTTPStream:
    """A Stream over aiohttp."""

    def __init__(self, response: aiohttp.ClientResponse, max_bytes: int) -> None:
        self._response = response
        self._max_bytes = max_bytes
        self.status = response.status
        # aiohttp's own property makes something up where there is no such header.
        given = response.headers.get("Content-Type", "")
        self.content_type = given.partition(";")[0].strip().lower()
        self.retry_after = response.headers.get("Retry-After", "")
        self.retry_after_ms = response.headers.get("retry-after-ms", "")

    async def chunks(self) -> AsyncIterator[bytes]:
        """See Stream.chunks."""
        left = self._max_bytes
        if (self._response.content_length or 0) > left:
            raise TooLargeError
        try:
            while chunk := await self._response.content.readany():
                left -= len(chunk)
                if left < 0:
                    raise TooLargeError
                yield chunk
        except TimeoutError as error:
            raise _timed_out(error) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _translated(error, answering=True) from None


def _with_version(base_url: str) -> str:
    base = base_url.rstrip("/")
    # A bare server address can only mean its usual place.
    return base if URL(base).path not in ("", "/") else base + _VERSION


def request_headers(upstream: Upstream, environment: Mapping[str, str]) -> dict[str, str]:
    """The headers of every request. Raises UpstreamTableError if the key is missing."""
    # Compressed answers are refused, because a small one may unfold to any size.
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "backhaul",
    }
    name = upstream.api_key_env
    if name is not None:
        key = environment.get(name, "").strip()
        if not key:
            raise UpstreamTableError(
                f"Upstream '{upstream.name}' takes its key from {name}, which is not set."
            )
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _answer(response: aiohttp.ClientResponse, content: bytes) -> Answer:
    status, headers = response.status, response.headers
    request_id = headers.get("x-request-id", "")
    if status < 400:
        return Answer(status, content, request_id)
    return Answer(
        status,
        content,
        request_id,
        headers.get("Retry-After", ""),
        headers.get("retry-after-ms", ""),
    )


def _timed_out(error: TimeoutError) -> InferenceError:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UnreachableError()
    return TimedOutError()


def _translated(error: Exception, answering: bool) -> InferenceError:
    if isinstance(error, aiohttp.ClientSSLError):
        return UnreachableError()
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return UnreachableError() if answering else BlipError()
    if isinstance(error, aiohttp.ClientPayloadError) and not _garbled(error):
        return UnreachableError()
    return BadAnswerError()


def _garbled(error: aiohttp.ClientPayloadError) -> bool:
    return isinstance(error.__cause__, aiohttp.http_exceptions.ContentEncodingError)
