"""/v1/files/{id}/content: a file's bytes, whole or a range of them.

Of a batch that still runs the file is not there, but a beginning of it may be: it is served under
the id that the file will have, and says by a header that it is no more than that.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from urllib.parse import quote

import structlog
from aiohttp import hdrs, web

from api.auth import TENANT
from api.batches.partial import UNFINISHED
from api.errors import NotFound
from api.gateway import GATEWAY, Gateway
from api.http.ranges import asked_range
from api.routes.files import found_file
from schemas.headers import PARTIAL_LINES
from schemas.records import BatchSnapshot, FileRecord
from streams.domain.ids import batch_of_file
from streams.ports.object_store import ObjectStoreError

log = structlog.get_logger(__name__)

_CHUNK_BYTES = 256 * 1024

routes = web.RouteTableDef()


@routes.get("/v1/files/{file_id}/content")
async def content(request: web.Request) -> web.StreamResponse:
    """The file's bytes."""
    unfinished = await _unfinished(request)
    if unfinished is not None:
        return await _beginning(request, *unfinished)
    record = await found_file(request)
    size = record.object.size_bytes
    headers = _headers(record)
    wanted = asked_range(request, headers.get(hdrs.ETAG), size)
    start, end = (0, size) if wanted is None else wanted
    if wanted is not None:
        headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{end - 1}/{size}"
    response = web.StreamResponse(status=200 if wanted is None else 206, headers=headers)
    response.content_length = end - start
    if request.method == hdrs.METH_HEAD or start == end:
        await response.prepare(request)
    else:
        await _send(request, response, record, start, end)
    await response.write_eof()
    return response


async def _send(
    request: web.Request, response: web.StreamResponse, record: FileRecord, start: int, end: int
) -> None:
    chunks = request.app[GATEWAY].store.stream(record.object.key, start, end - start, _CHUNK_BYTES)
    await _send_chunks(request, response, chunks, end - start)


async def _unfinished(request: web.Request) -> tuple[BatchSnapshot, bool] | None:
    """The running batch that the path's id is to name a file of, and whether its output file."""
    gateway, tenant, file_id = request.app[GATEWAY], request[TENANT], request.match_info["file_id"]
    named = batch_of_file(file_id)
    if named is None:
        return None
    batch_id, output = named
    batch = await gateway.batch(tenant, batch_id)
    return None if batch is None or batch.status not in UNFINISHED else (batch, output)


async def _beginning(
    request: web.Request, batch: BatchSnapshot, output: bool
) -> web.StreamResponse:
    """What is certain of the file: every line before the first that is not in yet."""
    found = await request.app[GATEWAY].partial.of(batch)
    # The lines first: of more bytes than they have nothing would be wrong.
    lines, size = found.files.lines, found.files.size(output=output)
    if size == 0:
        raise NotFound(
            "There is nothing in this file yet.", param="id", headers={PARTIAL_LINES: str(lines)}
        )
    kind = "output" if output else "error"
    headers = _common_headers(f"{batch.batch_id}_{kind}.jsonl")
    headers |= {PARTIAL_LINES: str(lines), hdrs.CACHE_CONTROL: "no-store"}
    wanted = asked_range(request, None, size, {PARTIAL_LINES: str(lines)})
    start, end = (0, size) if wanted is None else wanted
    if wanted is not None:
        headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{end - 1}/*"
    response = web.StreamResponse(status=200 if wanted is None else 206, headers=headers)
    response.content_length = end - start
    if request.method == hdrs.METH_HEAD:
        await response.prepare(request)
    else:
        chunks = found.read(start, end, output=output)
        await _send_chunks(request, response, chunks, end - start)
    await response.write_eof()
    return response


async def _send_chunks(
    request: web.Request, response: web.StreamResponse, chunks: AsyncIterator[bytes], promised: int
) -> None:
    gateway = request.app[GATEWAY]
    sent = 0
    async with aclosing(chunks):  # type: ignore[type-var]  # a generator in every store
        try:
            async for chunk in chunks:
                # Headers wait for the first bytes, so that a store in trouble is an error answer.
                if not response.prepared:
                    await response.prepare(request)
                await _write(response, chunk, gateway)
                sent += len(chunk)
        except (ObjectStoreError, TimeoutError):
            if not response.prepared:
                raise
            file_id = request.match_info["file_id"]
            log.warning("A download broke off.", action="download_cut", file_id=file_id)
    if sent < promised:
        if not response.prepared:
            raise ObjectStoreError("The object is shorter than its record says.")
        # The length was promised: only a cut connection tells the client that bytes are missing.
        if request.transport is not None:
            request.transport.abort()


async def _write(response: web.StreamResponse, chunk: bytes, gateway: Gateway) -> None:
    async with asyncio.timeout(gateway.timeouts.stalled_s):
        await response.write(chunk)


def _headers(record: FileRecord) -> dict[str, str]:
    headers = _common_headers(record.filename)
    if record.object.sha256:
        headers[hdrs.ETAG] = f'"{record.object.sha256}"'
    return headers


def _common_headers(filename: str) -> dict[str, str]:
    return {
        hdrs.CONTENT_TYPE: "application/octet-stream",
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.CONTENT_DISPOSITION: _disposition(filename),
    }


def _disposition(filename: str) -> str:
    """RFC 6266: never shown inline, and whatever the name holds stays within it."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]", "_", filename)
    exact = quote(filename.encode("utf-8", "replace"), safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"
