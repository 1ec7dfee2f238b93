"""What is not good HTTP is answered in the envelope, too, and its bytes stay out of the log.

aiohttp answers a request that it can't parse before any middleware sees it, in plain text, and
logs what it could not parse: a header could be a key, a line could be a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from api.errors import InternalError, InvalidRequest
from streams.domain.ids import new_request_id

log = structlog.get_logger(__name__)


class _Protocol(RequestHandler):
    """One connection. lost: called when it is closed, by whoever it was."""

    __slots__ = ("lost",)

    def __init__(self, manager: web.Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self.lost: set[Callable[[], None]] = set()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        for call in list(self.lost):
            call()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        log.warning(
            "A request was not good HTTP.",
            action="bad_http",
            status=status,
            error=type(exc).__name__,
        )
        if request.writer.output_size > 0:
            raise ConnectionError("An answer was begun; only the connection can be cut.")
        if status >= web.HTTPInternalServerError.status_code:
            answer = InternalError("The server had an error.").response()
        else:
            answer = InvalidRequest(
                "The request is not valid HTTP, or a part is too long."
            ).response()
        answer.headers["x-request-id"] = new_request_id()
        answer.headers["openai-processing-ms"] = "0"
        answer.force_close()
        return answer


@contextmanager
def connection_lost(request: web.Request, call: Callable[[], None]) -> Iterator[None]:
    """Calls `call` if the client closes the connection meanwhile."""
    lost = cast("_Protocol", request.protocol).lost
    if request.transport is None:
        call()
    lost.add(call)
    try:
        yield
    finally:
        lost.discard(call)


class _Server(web.Server):
    """Makes a protocol for each connection."""

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class EnvelopeRunner(web.AppRunner):
    """An AppRunner whose connections are ours."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # The application makes its Server itself, from parts that are not public; all that
        # differs in ours is the method above.
        server.__class__ = _Server
        return server
