"""/v1/files/{id}/content: a file's bytes, whole or a range of them (RFC 9110, section 14)."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from urllib.parse import quote

import structlog
from aiohttp import hdrs, web

from api.errors import ApiError, RangeNotSatisfiable
from api.gateway import GATEWAY, Gateway
from api.routes.files import found_file
from schemas.records import FileRecord
from streams.ports.object_store import ObjectStoreError

log = structlog.get_logger(__name__)

_RANGE = re.compile(r"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")
_CHUNK_BYTES = 256 * 1024

routes = web.RouteTableDef()


@routes.get("/v1/files/{file_id}/content")
async def content(request: web.Request) -> web.StreamResponse:
    """The file's bytes."""
    record = await found_file(request)
    size = record.object.size_bytes
    headers = _headers(record)
    wanted = _asked_range(request, headers.get(hdrs.ETAG), size)
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
    gateway = request.app[GATEWAY]
    chunks = gateway.store.stream(record.object.key, start, end - start, _CHUNK_BYTES)
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
            log.warning("A download broke off.", action="download_cut", file_id=record.file_id)
    if sent < end - start:
        if not response.prepared:
            raise ObjectStoreError("The object is shorter than its record says.")
        # The length was promised: only a cut connection tells the client that bytes are missing.
        if request.transport is not None:
            request.transport.abort()


async def _write(response: web.StreamResponse, chunk: bytes, gateway: Gateway) -> None:
    async with asyncio.timeout(gateway.timeouts.stalled_s):
        await response.write(chunk)


def _headers(record: FileRecord) -> dict[str, str]:
    headers: dict[str, str] = {
        hdrs.CONTENT_TYPE: "application/octet-stream",
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.CONTENT_DISPOSITION: _disposition(record.filename),
    }
    if record.object.sha256:
        headers[hdrs.ETAG] = f'"{record.object.sha256}"'
    return headers


def _disposition(filename: str) -> str:
    """RFC 6266: never shown inline, and whatever the name holds stays within it."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]", "_", filename)
    exact = quote(filename.encode("utf-8", "replace"), safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"


def _asked_range(request: web.Request, etag: str | None, size: int) -> tuple[int, int] | None:
    """[start, end) of the one range asked for; None for the whole file.

    What is not one well-formed range is ignored, as the RFC allows. Raises RangeNotSatisfiable.
    """
    header = request.headers.get(hdrs.RANGE)
    if_range = request.headers.get(hdrs.IF_RANGE)
    match = _RANGE.fullmatch(header) if header else None
    if match is None or not (match[1] or match[2]) or (if_range is not None and if_range != etag):
        return None
    if match[1]:
        start = int(match[1])
        last = int(match[2]) if match[2] else size - 1
        if match[2] and last < start:
            return None
        end = min(last + 1, size)
    else:
        start, end = max(size - int(match[2]), 0), size
    if start >= end:
        raise _behind_the_end(size)
    return start, end


def _behind_the_end(size: int) -> ApiError:
    return RangeNotSatisfiable(
        "The requested range lies behind the end of the file.",
        param="range",
        code="range_not_satisfiable",
        headers={hdrs.CONTENT_RANGE: f"bytes */{size}"},
    )
