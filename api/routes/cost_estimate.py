"""/v1/files/{id}/cost-estimate: what a batch on the file would cost. The route is ours."""

from __future__ import annotations

from aiohttp import web

from api import checks, views
from api.batches.estimate import estimate, view
from api.batches.request import endpoint_in, window_in
from api.errors import InvalidRequest
from api.gateway import GATEWAY
from api.http.body import json_object
from api.routes.files import found_file
from streams.domain.batch.tasks import INPUT_PURPOSE

_KNOWN = ("endpoint", "completion_window")

routes = web.RouteTableDef()


@routes.post("/v1/files/{file_id}/cost-estimate")
async def cost_estimate(request: web.Request) -> web.Response:
    """Reads the file and says what its lines will use, and what that costs in each window."""
    gateway = request.app[GATEWAY]
    body = await json_object(request)
    checks.known_only(body, _KNOWN)
    endpoint = endpoint_in(body)
    windows = gateway.settings.completion_windows
    asked = list(windows)
    if body.get("completion_window") is not None:
        asked = [window_in(body, windows)]
    file = await found_file(request)
    if file.purpose != INPUT_PURPOSE:
        raise InvalidRequest(
            f"The file was uploaded with purpose '{file.purpose}'; "
            f"a batch needs a file with purpose '{INPUT_PURPOSE}'.",
            param="id",
            code="invalid_value",
        )
    async with gateway.scans.now(file.tenant, "estimates"):
        found = await estimate(gateway, file, endpoint)
    answer = view(found, file, endpoint, asked, gateway.prices.current(), gateway.clock.now_ms())
    return views.answer(answer)
