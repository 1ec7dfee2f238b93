"""/v1/files: upload, list, get, delete. Their content is served in `content`."""

from __future__ import annotations

import msgspec
import structlog
from aiohttp import web

from api import checks, views
from api.auth import TENANT
from api.errors import NotFound
from api.files.upload import receive
from api.gateway import GATEWAY
from api.routes.paging import paging, unknown_after
from schemas.records import FileRecord
from schemas.topics import FILE

log = structlog.get_logger(__name__)

_MAX_LIMIT = 10_000
_MAX_PURPOSE = 64

routes = web.RouteTableDef()


@routes.post("/v1/files")
async def upload(request: web.Request) -> web.Response:
    """Stores a file. It is shown once its bytes are safe and its record is in the log."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    async with gateway.uploads.now(tenant, "uploads"):
        record = await receive(request, gateway, tenant)
    # If this fails, nobody knows whether the log has the record: the bytes stay, and the
    # clean-up removes them in a day if it hasn't.
    await gateway.publish(FILE, record.file_id, record)
    log.info(
        "A file was uploaded.",
        action="file_uploaded",
        file_id=record.file_id,
        size_bytes=record.object.size_bytes,
        purpose=record.purpose,
    )
    return views.answer(views.file(record))


@routes.get("/v1/files")
async def list_files(request: web.Request) -> web.Response:
    """A page of the tenant's files."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    known = ("limit", "after", "order", "purpose")
    page = paging(request, default=_MAX_LIMIT, maximum=_MAX_LIMIT, known=known)
    purpose = request.query.get("purpose") or None
    if purpose is not None:
        checks.at_most("purpose", purpose, _MAX_PURPOSE)
    after = None
    if page.after is not None:
        wanted = page.after
        after = await gateway.surely(lambda: gateway.queries.file_place(tenant, wanted))
        if after is None:
            raise unknown_after(wanted)
    found = await gateway.queries.files(
        tenant,
        purpose=purpose,
        order=page.order,
        after=after,
        limit=page.limit + 1,
        now_ms=gateway.clock.now_ms(),
    )
    data = [views.file(f) for f in found[: page.limit]]
    return views.answer(views.page(data, has_more=len(found) > page.limit))


@routes.get("/v1/files/{file_id}")
async def get(request: web.Request) -> web.Response:
    """One file's description."""
    return views.answer(views.file(await found_file(request)))


@routes.delete("/v1/files/{file_id}")
async def delete(request: web.Request) -> web.Response:
    """Hides a file at once; its bytes go when no live batch needs them."""
    gateway = request.app[GATEWAY]
    record = await found_file(request)
    ended = msgspec.structs.replace(record, deleted_at_ms=gateway.clock.now_ms())
    await gateway.publish(FILE, record.file_id, ended)
    log.info("A file was deleted.", action="file_deleted", file_id=record.file_id)
    return views.answer({"id": record.file_id, "object": "file", "deleted": True})


async def found_file(request: web.Request) -> FileRecord:
    """The file that the path names. Raises NotFound."""
    file_id = request.match_info["file_id"]
    record = await request.app[GATEWAY].file(request[TENANT], file_id)
    if record is None:
        raise NotFound(f"No such File object: {file_id}", param="id")
    return record
