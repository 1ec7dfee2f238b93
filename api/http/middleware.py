"""What every request gets: an id, a time, a tenant, a limit, and errors in OpenAI's envelope."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import hdrs, web

from api.auth import KEY_ID, KEYLESS, TENANT
from api.errors import (
    ApiError,
    InternalError,
    RateLimited,
    Unavailable,
    from_exception,
    from_http_exception,
)
from api.gateway import GATEWAY
from api.room import Room
from schemas.metrics import GATEWAY_REQUESTS, GATEWAY_SECONDS, Metrics
from streams.domain.ids import new_request_id

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

METRICS = web.AppKey("metrics", Metrics)
REQUEST_ID = web.RequestKey("request_id", str)
_STARTED = web.RequestKey("started", float)

#: Requests worked on at once; more are told to come back in a second.
MAX_IN_FLIGHT = 1000


class InFlight:
    """The requests being worked on, and whether the gateway stops once they are done."""

    def __init__(self) -> None:
        self.requests: set[str] = set()
        #: Those whose tenant is known.
        self.room = Room(MAX_IN_FLIGHT)
        self.stopping = False
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self, request_id: str) -> None:
        """A request came in."""
        self.requests.add(request_id)
        self._idle.clear()

    def end(self, request_id: str) -> None:
        """It was answered."""
        self.requests.discard(request_id)
        if not self.requests:
            self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Waits until no request is worked on; answers from now on close their connections."""
        self.stopping = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


IN_FLIGHT = web.AppKey("in_flight", InFlight)

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "openai-version": "2020-10-01",
}


def install(app: web.Application) -> None:
    """Adds all of it to the application."""
    app[IN_FLIGHT] = InFlight()
    app.middlewares.extend([identify, answer_errors, limit, authenticate, share])
    app.on_response_prepare.append(_set_headers)


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives the request its id, and counts it when it is answered."""
    request[REQUEST_ID] = new_request_id()
    request[_STARTED] = time.perf_counter()
    status = 499
    with structlog.contextvars.bound_contextvars(request_id=request[REQUEST_ID]):
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            _count(request, status)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns whatever is raised into an answer, or into a cut connection if it is too late."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        known: ApiError | None = from_http_exception(error, request)
        cause: Exception = error
    except ConnectionError:
        # The client is gone; there is nobody to answer.
        raise
    # A defect in one request must not reach the others; it is logged with its trace.
    except Exception as error:  # noqa: BLE001 - the edge of the process
        known, cause = from_exception(error), error
    if known is None or (known.status >= 500 and not isinstance(cause, ApiError)):
        log.error("A request failed.", action="request_failed", exc_info=cause)
    answer = known or InternalError("The server had an error while processing your request.")
    return answer.response()


@web.middleware
async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns requests away while there are too many, or nothing to answer them from yet."""
    in_flight = request.app[IN_FLIGHT]
    if len(in_flight.requests) >= MAX_IN_FLIGHT:
        raise Unavailable("The server has too many requests at once.", code="overloaded")
    if not request.app[GATEWAY].follower.caught_up:
        raise Unavailable("The server is starting.", code="starting")
    in_flight.begin(request[REQUEST_ID])
    try:
        return await handler(request)
    finally:
        in_flight.end(request[REQUEST_ID])


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Finds who is asking. A path that doesn't exist needs no key to be told so."""
    if request.match_info.http_exception is None and request.path not in KEYLESS:
        header = request.headers.get("Authorization")
        caller = await request.app[GATEWAY].keyring.caller(header)
        request[TENANT], request[KEY_ID] = caller
    return await handler(request)


@web.middleware
async def share(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns a tenant's request away while so many of its others leave little room."""
    tenant = request.get(TENANT)
    if tenant is None:
        return await handler(request)
    room = request.app[IN_FLIGHT].room
    if room.enough(tenant):
        raise RateLimited(
            "You make too many requests at once: wait for one of them to end.",
            code="too_many_at_once",
        )
    room.take(tenant)
    try:
        return await handler(request)
    finally:
        room.free(tenant)


async def _set_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "backhaul"
    if request.app[IN_FLIGHT].stopping:
        response.headers["Connection"] = "close"
        response.force_close()
    # Absent where aiohttp answers before any middleware runs.
    response.headers["x-request-id"] = request.get(REQUEST_ID) or new_request_id()
    started = request.get(_STARTED)
    ms = 0 if started is None else (time.perf_counter() - started) * 1000
    response.headers["openai-processing-ms"] = str(round(ms))


def _count(request: web.Request, status: int) -> None:
    metrics = request.app[METRICS]
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "unknown"
    # Callers may make methods up, and a label's values must be few.
    method = request.method if request.method in hdrs.METH_ALL else "other"
    metrics.counter(GATEWAY_REQUESTS).labels(method, route, str(status)).inc()
    metrics.histogram(GATEWAY_SECONDS).labels(method, route).observe(
        time.perf_counter() - request[_STARTED]
    )
