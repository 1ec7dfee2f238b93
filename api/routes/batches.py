"""/v1/batches: create, get, list, cancel."""

from __future__ import annotations

from aiohttp import web

from api import views
from api.auth import TENANT
from api.body import json_object
from api.create_request import CreateRequest, parse
from api.errors import Conflict, NotFound, Unavailable
from api.gateway import GATEWAY, Gateway
from api.read_model.schema import from_create, with_cancel
from api.routes.paging import paging, unknown_after
from schemas.records import BatchCancel, BatchCreate, BatchSnapshot, BatchStatus
from schemas.topics import BATCH_COMMAND
from streams.domain.ids import idempotent_batch_id, new_batch_id, new_command_id

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
    )
    if asked.idempotency_key is None:
        batch = await _create(gateway, tenant, asked, new_batch_id())
    else:
        batch = await _create_once(gateway, tenant, asked, asked.idempotency_key)
    return views.answer(views.batch(batch))


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
    data = [views.batch(b) for b in found[: page.limit]]
    return views.answer(views.page(data, has_more=len(found) > page.limit))


@routes.get("/v1/batches/{batch_id}")
async def get(request: web.Request) -> web.Response:
    """One batch."""
    return views.answer(views.batch(await _found(request)))


@routes.post("/v1/batches/{batch_id}/cancel")
async def cancel(request: web.Request) -> web.Response:
    """Asks the controller to cancel, unless the batch has ended."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    # Whether it has ended is judged by the newest snapshot there is.
    await gateway.sync()
    batch = await _found(request)
    if batch.status in _ENDED:
        raise Conflict(f"Cannot cancel a batch with status '{batch.status.value}'.")
    if batch.status not in _CANCELLED:
        batch = await _cancel(gateway, tenant, batch)
    return views.answer(views.batch(batch))


async def _found(request: web.Request) -> BatchSnapshot:
    batch_id = request.match_info["batch_id"]
    batch = await request.app[GATEWAY].batch(request[TENANT], batch_id)
    if batch is None:
        raise NotFound(f"No batch found with id '{batch_id}'.")
    return batch


async def _create(
    gateway: Gateway, tenant: str, asked: CreateRequest, batch_id: str
) -> BatchSnapshot:
    file = await gateway.file(tenant, asked.input_file_id)
    command = BatchCreate(
        command_id=new_command_id(),
        batch_id=batch_id,
        tenant=tenant,
        at_ms=gateway.clock.now_ms(),
        endpoint=asked.endpoint,
        input_file_id=asked.input_file_id,
        # An unknown file is no error here: the batch fails validation.
        input=None if file is None else file.object,
        input_purpose=None if file is None else file.purpose,
        completion_window=asked.completion_window,
        window_s=asked.window_s,
        metadata=asked.metadata,
        output_expires_after_s=asked.output_expires_after_s,
        request_hash=asked.hash(),
    )
    read_back = await gateway.publish(BATCH_COMMAND, batch_id, command)
    if asked.idempotency_key is None:
        return from_create(command)
    if not read_back:
        # Only the log knows whether this create was the first; asking again is safe.
        raise Unavailable("The server is not able to answer just now.", code="unavailable")
    return await gateway.queries.batch(tenant, batch_id) or from_create(command)


async def _create_once(
    gateway: Gateway, tenant: str, asked: CreateRequest, key: str
) -> BatchSnapshot:
    batch_id = idempotent_batch_id(tenant, key)
    batch = await gateway.queries.batch(tenant, batch_id)
    if batch is None:
        batch = await _create(gateway, tenant, asked, batch_id)
    if batch.request_hash != asked.hash():
        raise Conflict(
            "Idempotency conflict: this key was used before, for a request that differs.",
            param="idempotency_key",
            code="idempotency_conflict",
        )
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
