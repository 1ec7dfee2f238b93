"""POST /v1/chat/completions and its like: answered while the client waits."""

from __future__ import annotations

from aiohttp import web

from api.auth import TENANT
from api.gateway import GATEWAY
from api.http.middleware import REQUEST_ID
from api.http.protocol import connection_lost
from api.realtime.answer import pass_on
from api.realtime.request import read_request

routes = web.RouteTableDef()


@routes.post("/v1/chat/completions")
@routes.post("/v1/completions")
@routes.post("/v1/embeddings")
@routes.post("/v1/responses")
async def answer(request: web.Request) -> web.StreamResponse:
    """The model's answer, as the upstream gives it."""
    lane = request.app[GATEWAY].lane
    asked = await read_request(request)
    pending = lane.begin(request[REQUEST_ID], request[TENANT], asked)
    try:
        pending.on_slow = lambda: _cut(request)
        with connection_lost(request, pending.abandon):
            await lane.send(pending)
            return await pass_on(request, pending)
    finally:
        lane.finish(pending)


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
