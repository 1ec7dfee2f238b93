"""Writing answers to the caller: prebuilt bytes where it must be cheap, and broken on purpose."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

_DRIP_PIECES = 50
_HUGE_CHUNK = b" " * 65536
_JSON = b"application/json"
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class Written(web.StreamResponse):
    """Tells aiohttp that the handler has written the whole answer by itself."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection stays open for another request."""
        return self._keep_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """There is nothing left to write."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """There is nothing left to write."""


_DONE = Written(keep_alive=True)
_DONE_AND_CLOSE = Written(keep_alive=False)


def write_answer(
    request: web.BaseRequest,
    status: int,
    body: bytes,
    *,
    content_type: bytes = _JSON,
    headers: bytes = b"",
) -> web.StreamResponse:
    """Writes a whole answer in one piece; `headers` are extra lines, each with its CRLF."""
    transport = _transport(request)
    head = _head(request, status, len(body), content_type, headers)
    transport.write(head + body)
    return _done(request)


def _head(
    request: web.BaseRequest, status: int, length: int, content_type: bytes, headers: bytes
) -> bytes:
    close = b"" if request.keep_alive else b"Connection: close\r\n"
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n" % (
        status,
        _PHRASES.get(status, b"Status"),
        content_type,
        length,
        headers,
        close,
    )


def _done(request: web.BaseRequest) -> web.StreamResponse:
    return _DONE if request.keep_alive else _DONE_AND_CLOSE


def _transport(request: web.BaseRequest) -> asyncio.Transport:
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the caller went away")
    return transport


def check_open(request: web.BaseRequest) -> None:
    """Raises ConnectionResetError if the caller went away."""
    _transport(request)


def retry_after(seconds: float) -> bytes:
    """The header lines that tell the caller when to come back; whole seconds, and exact ones."""
    whole = math.ceil(seconds)
    exact = b"" if whole == seconds else b"retry-after-ms: %d\r\n" % round(seconds * 1000)
    return b"Retry-After: %d\r\n%b" % (whole, exact)


def cut(request: web.BaseRequest) -> web.StreamResponse:
    """Closes the connection after what was written so far."""
    transport = request.transport
    if transport is not None:
        transport.close()
    return _DONE_AND_CLOSE


def cut_in_the_middle(request: web.BaseRequest, body: bytes) -> web.StreamResponse:
    """Promises the whole body, writes half of it, and closes the connection."""
    head = _head(request, 200, len(body), _JSON, b"")
    _transport(request).write(head + body[: len(body) // 2])
    return cut(request)


async def drip(
    request: web.BaseRequest, body: bytes, seconds: float, before_last: Callable[[], None]
) -> web.StreamResponse:
    """Writes the right answer in some fifty pieces, evenly over that time."""
    step = max(1, len(body) // _DRIP_PIECES)
    pieces = [body[i : i + step] for i in range(0, len(body), step)]
    _transport(request).write(_head(request, 200, len(body), _JSON, b""))
    for number, piece in enumerate(pieces, 1):
        await asyncio.sleep(seconds / len(pieces))
        transport = _transport(request)
        if number == len(pieces):
            before_last()
        transport.write(piece)
    return _done(request)


async def write_huge(
    request: web.BaseRequest,
    body: bytes,
    marker: bytes,
    size: int,
    before_last: Callable[[], None],
) -> web.StreamResponse:
    """Writes `body` with `size` more bytes after the first `marker`, never held in memory.

    The bytes are spaces, which are right both in a text and before a number.
    """
    middle = body.index(marker) + len(marker)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(body) + size
    await response.prepare(request)
    await response.write(body[:middle])
    for left in range(size, 0, -len(_HUGE_CHUNK)):
        await response.write(_HUGE_CHUNK[:left])
    check_open(request)
    before_last()
    await response.write(body[middle:])
    return response
