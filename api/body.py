"""Reads a request's JSON body, within a limit and a time."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from api.errors import InvalidRequest, RequestTooSlow
from api.gateway import GATEWAY

#: Largest JSON body.
MAX_BODY_BYTES = 1024 * 1024


async def json_object(request: web.Request) -> dict[str, Any]:
    """The body, if it is a JSON object. Raises ApiError."""
    try:
        async with asyncio.timeout(request.app[GATEWAY].timeouts.body_s):
            raw = await request.read()
    except TimeoutError as error:
        raise RequestTooSlow("The request did not arrive in time.", code="timeout") from error
    except web.RequestPayloadError as error:
        raise InvalidRequest("The request's body was cut off.") from error
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            "We could not parse the JSON body of your request. (HINT: The API expects a JSON "
            "payload, but what was sent was not valid JSON.)"
        ) from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body of your request must be a JSON object.", code="invalid_type")
    return body
