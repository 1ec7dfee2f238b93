"""Passes an answer on to the client: whole, or event by event as it comes."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import hdrs, web

from api.errors import ApiError
from api.gateway import GATEWAY
from api.realtime.pending import EVENTS, ClientGoneError, Pending, Result
from schemas.records import RealtimeReply

_JSON = "application/json"
#: The SDKs give up on a longer pause.
_MAX_RETRY_AFTER_S = 120
_KINDS = {401: "invalid_request_error", 429: "requests"}


async def pass_on(request: web.Request, pending: Pending) -> web.StreamResponse:
    """The answer. Raises ApiError, ConnectionError."""
    head = await pending.head()
    if head.content_type == EVENTS and head.status < 300:
        return await _events(request, pending)
    parts = []
    while (data := await pending.data()) is not None:
        parts.append(data)
    return _whole(head, b"".join(parts))


async def _events(request: web.Request, pending: Pending) -> web.StreamResponse:
    stalled_s = request.app[GATEWAY].timeouts.stalled_s
    # Until there is something to pass on, an error can still be an answer of its own.
    data = await pending.data()
    response = web.StreamResponse(
        headers={hdrs.CONTENT_TYPE: f"{EVENTS}; charset=utf-8", "X-Accel-Buffering": "no"}
    )
    await response.prepare(request)
    try:
        while data is not None:
            async with asyncio.timeout(stalled_s):
                await response.write(data)
            data = await pending.data()
    except TimeoutError as error:
        pending.fail(Result.SLOW, ClientGoneError())
        raise ClientGoneError from error
    except ApiError as error:
        # The status has been sent; the SDKs take such an event for an error.
        await response.write(b"data: " + error.body() + b"\n\n")
    await response.write_eof()
    return response


def _whole(head: RealtimeReply, body: bytes) -> web.Response:
    headers: dict[str, str] = {}
    if head.retry_after_s:
        headers[hdrs.RETRY_AFTER] = str(min(head.retry_after_s, _MAX_RETRY_AFTER_S))
    if head.status >= 500:
        headers["x-should-retry"] = "true"
    if head.status >= 400 and not _is_envelope(body):
        body = _envelope(head.status)
    return web.Response(status=head.status, body=body, content_type=_JSON, headers=headers)


class _Envelope(msgspec.Struct):
    error: dict[str, msgspec.Raw]


def _is_envelope(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _envelope(status: int) -> bytes:
    """What a client gets in place of an error page that no SDK could read."""
    broken = status >= 500
    error = {
        "message": f"The model server {'failed' if broken else 'refused the request'} ({status}).",
        "type": "server_error" if broken else _KINDS.get(status, "invalid_request_error"),
        "param": None,
        "code": None,
    }
    return msgspec.json.encode({"error": error})
