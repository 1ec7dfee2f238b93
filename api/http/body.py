"""Reads a request's JSON body, within a limit and a time."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from api.errors import InvalidRequest, RequestTooSlow, TooLarge
from api.gateway import GATEWAY

#: Largest JSON body, where a route doesn't say otherwise.
MAX_BODY_BYTES = 1024 * 1024


async def json_object(
    request: web.Request, *, max_bytes: int = MAX_BODY_BYTES, empty: bool = False
) -> dict[str, Any]:
    """The body, if it is a JSON object; no body is an empty object where `empty` says so.

    Raises ApiError.
    """
    raw = await read_body(request, max_bytes)
    return {} if empty and not raw else decoded_object(raw)


async def read_body(request: web.Request, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The body as it came. Raises ApiError."""
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    raw = bytearray()
    try:
        async with asyncio.timeout(request.app[GATEWAY].timeouts.body_s):
            while chunk := await request.content.readany():
                raw += chunk
                if len(raw) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError as error:
        raise RequestTooSlow("The request did not arrive in time.", code="timeout") from error
    except web.RequestPayloadError as error:
        raise InvalidRequest("The request's body was cut off.") from error
    return bytes(raw)


def decoded_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in these bytes. Raises InvalidRequest."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json() from error
    if not isinstance(body, dict):
        raise not_object()
    return body


def not_json() -> InvalidRequest:
    """The error for a body that isn't JSON."""
    return InvalidRequest(
        "We could not parse the JSON body of your request. (HINT: The API expects a JSON "
        "payload, but what was sent was not valid JSON.)"
    )


def not_object() -> InvalidRequest:
    """The error for a body that is JSON, but no object."""
    return InvalidRequest("The body of your request must be a JSON object.", code="invalid_type")


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(
        f"The request's body is too large: at most {max_bytes} bytes are allowed.",
        code="request_too_large",
    )
