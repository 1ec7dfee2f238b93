"""/v1/batches/{id}/retry: the failed lines of an ended batch as a new batch. The route is ours."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import structlog
from aiohttp import web

from api import checks, views
from api.auth import KEY_ID, TENANT
from api.batches.create import create_batch, created_before
from api.batches.failed_lines import LinesDiffer, failed_lines
from api.batches.request import CreateRequest, parse
from api.errors import Conflict
from api.files.upload import store_lines
from api.gateway import GATEWAY, Gateway
from api.http.body import json_object
from api.read_model.schema import ended_at_ms
from api.routes.batches import found_batch
from schemas.records import BatchSnapshot, FileRecord
from schemas.topics import FILE
from streams.domain.ids import idempotent_file_id
from streams.ports.object_store import ObjectNotFoundError

log = structlog.get_logger(__name__)

_KNOWN = (
    *("completion_window", "metadata", "priority"),
    *("output_expires_after", "idempotency_key"),
)

routes = web.RouteTableDef()


@routes.post("/v1/batches/{batch_id}/retry")
async def retry(request: web.Request) -> web.Response:
    """Makes a file of the batch's failed lines, and a batch on it that names its origin.

    With an Idempotency-Key a repeat makes neither again.
    """
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    body = await json_object(request, empty=True)
    checks.known_only(body, _KNOWN)
    # Whether it has ended is judged by the newest snapshot there is.
    await gateway.sync()
    origin = await found_batch(request)
    asked = _asked(body, request, origin)
    request_hash = hashlib.sha256(f"retry:{origin.batch_id}:{asked.hash()}".encode()).hexdigest()
    async with gateway.makings.now(origin.tenant, "batches"):
        batch = None
        if asked.idempotency_key is not None:
            batch = await created_before(gateway, tenant, asked.idempotency_key, request_hash)
        batch = batch or await _made(gateway, origin, asked, request_hash)
    return views.answer(gateway.shown(batch))


def _asked(body: Mapping[str, Any], request: web.Request, origin: BatchSnapshot) -> CreateRequest:
    """The create that the retry is; what it doesn't say is as the origin was created."""
    own = {
        "completion_window": origin.completion_window,
        "metadata": origin.metadata,
        "priority": origin.priority,
    }
    said = {name: value for name, value in body.items() if value is not None}
    fixed = {"endpoint": origin.endpoint, "input_file_id": ""}
    asked = parse(
        {**own, **said, **fixed},
        request.headers.get("Idempotency-Key"),
        request.app[GATEWAY].settings.completion_windows,
        key_id=request[KEY_ID],
    )
    expiry = asked.output_expires_after_s or origin.output_expires_after_s
    return dataclasses.replace(
        asked,
        output_expires_after_s=expiry,
        origin_batch_id=origin.batch_id,
    )


async def _made(
    gateway: Gateway, origin: BatchSnapshot, asked: CreateRequest, request_hash: str
) -> BatchSnapshot:
    file = await _file(gateway, origin, asked, request_hash)
    batch = await create_batch(
        gateway,
        origin.tenant,
        dataclasses.replace(asked, input_file_id=file.file_id),
        request_hash,
    )
    log.info(
        "Failed lines of a batch run again.",
        action="batch_retried",
        batch_id=batch.batch_id,
        origin_batch_id=origin.batch_id,
        file_id=file.file_id,
        size_bytes=file.object.size_bytes,
    )
    return batch


async def _file(
    gateway: Gateway, origin: BatchSnapshot, asked: CreateRequest, request_hash: str
) -> FileRecord:
    """The file of lines; the one that an earlier try of the same request has stored."""
    file_id = None
    if asked.idempotency_key is not None:
        file_id = idempotent_file_id(origin.tenant, asked.idempotency_key, request_hash)
        known = await gateway.file(origin.tenant, file_id)
        if known is not None:
            return known
    source, errors = await _sources(gateway, origin)
    lines = failed_lines(gateway.store, origin.batch_id, source.object, errors.object)
    try:
        name = f"{origin.batch_id}_retry.jsonl"
        record = await store_lines(gateway, origin.tenant, lines, name, file_id)
    except ObjectNotFoundError as error:
        raise _gone("The input or the error file", origin) from error
    except LinesDiffer as error:
        raise Conflict(
            f"Cannot retry batch '{origin.batch_id}': its error file does not fit its input file."
        ) from error
    await gateway.publish(FILE, record.file_id, record)
    return record


async def _sources(gateway: Gateway, origin: BatchSnapshot) -> tuple[FileRecord, FileRecord]:
    """The origin's input and error file. Raises Conflict."""
    if ended_at_ms(origin) is None:
        raise Conflict(f"Cannot retry a batch with status '{origin.status.value}'.")
    if origin.error_file_id is None:
        raise Conflict(
            f"Cannot retry batch '{origin.batch_id}' with status '{origin.status.value}': "
            "it has no failed lines."
        )
    errors = await gateway.file(origin.tenant, origin.error_file_id)
    if errors is None:
        raise _gone(f"The error file '{origin.error_file_id}'", origin)
    source = await gateway.file(origin.tenant, origin.input_file_id)
    if source is None:
        raise _gone(f"The input file '{origin.input_file_id}'", origin)
    return source, errors


def _gone(what: str, origin: BatchSnapshot) -> Conflict:
    return Conflict(
        f"Cannot retry batch '{origin.batch_id}'. {what} was deleted or has expired; "
        "create a batch on a new file with the lines to run again.",
        code="file_gone",
    )
