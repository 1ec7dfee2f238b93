"""/v1/batches: create, get, list, cancel."""

from __future__ import annotations

from aiohttp import web

from api import views
from api.auth import KEY_ID, TENANT
from api.batches.create import create_batch
from api.batches.request import parse
from api.errors import Conflict, NotFound
from api.gateway import GATEWAY, Gateway
from api.http.body import json_object
from api.read_model.schema import with_cancel
from api.routes.paging import paging, unknown_after
from schemas.records import BatchCancel, BatchSnapshot, BatchStatus
from schemas.topics import BATCH_COMMAND
from streams.domain.ids import new_command_id

_DEFAULT_LIMIT = 20
_MAX_LIMIT = 100
_CANCELLED = (BatchStatus.CANCELLING, BatchStatus.CANCELLED)
_ENDED = (BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED)

routes = web.RouteTableDef()


@routes.post("/v1/batches")
async def create(request: web.Request) -> web.Response:
    """Creates a batch, or answers the one that the same Idempotency-Key created before."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    asked = parse(
        await json_object(request),
        request.headers.get("Idempotency-Key"),
        gateway.settings.completion_windows,
        key_id=request[KEY_ID],
    )
    batch = await create_batch(gateway, tenant, asked)
    return views.answer(gateway.shown(batch))


@routes.get("/v1/batches")
async def list_batches(request: web.Request) -> web.Response:
    """A page of the tenant's batches, newest first."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    page = paging(request, default=_DEFAULT_LIMIT, maximum=_MAX_LIMIT, known=("limit", "after"))
    after = None
    if page.after is not None:
        wanted = page.after
        after = await gateway.surely(lambda: gateway.queries.batch_place(tenant, wanted))
        if after is None:
            raise unknown_after(wanted)
    found = await gateway.queries.batches(tenant, after, page.limit + 1)
    data = [gateway.shown(b) for b in found[: page.limit]]
    return views.answer(views.page(data, has_more=len(found) > page.limit))


@routes.get("/v1/batches/{batch_id}")
async def get(request: web.Request) -> web.Response:
    """One batch."""
    return views.answer(request.app[GATEWAY].shown(await found_batch(request)))


@routes.post("/v1/batches/{batch_id}/cancel")
async def cancel(request: web.Request) -> web.Response:
    """Asks the controller to cancel, unless the batch has ended."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    # Whether it has ended is judged by the newest snapshot there is.
    await gateway.sync()
    batch = await found_batch(request)
    if batch.status in _ENDED:
        raise Conflict(f"Cannot cancel a batch with status '{batch.status.value}'.")
    if batch.status not in _CANCELLED:
        batch = await _cancel(gateway, tenant, batch)
    return views.answer(gateway.shown(batch))


async def found_batch(request: web.Request) -> BatchSnapshot:
    """The tenant's batch that the path names. Raises NotFound."""
    batch_id = request.match_info["batch_id"]
    batch = await request.app[GATEWAY].batch(request[TENANT], batch_id)
    if batch is None:
        raise NotFound(f"No batch found with id '{batch_id}'.")
    return batch


async def _cancel(gateway: Gateway, tenant: str, batch: BatchSnapshot) -> BatchSnapshot:
    command = BatchCancel(
        command_id=new_command_id(),
        batch_id=batch.batch_id,
        tenant=tenant,
        at_ms=gateway.clock.now_ms(),
    )
    await gateway.publish(BATCH_COMMAND, batch.batch_id, command)
    return with_cancel(batch, command.at_ms)
