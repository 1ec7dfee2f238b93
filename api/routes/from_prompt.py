"""/v1/batches/from-prompt: makes a batch from a stored prompt and rows of variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import structlog
from aiohttp import web

from api import checks, views
from api.auth import TENANT
from api.batches.create import create_batch, created_before
from api.errors import InvalidRequest
from api.files.upload import one_by_one, store_lines
from api.gateway import GATEWAY, Gateway
from api.prompts.batch_request import PromptBatchRequest, check_row_size, read_prompt_batch, rows_of
from api.prompts.preview import compiled, refused
from api.prompts.writes import no_prompt
from api.routes.prompt_versions import found_version
from schemas.records import BatchSnapshot, FileRecord
from schemas.topics import FILE
from streams.domain.ids import idempotent_file_id
from streams.domain.prompts.lines import RowError, batch_lines
from streams.domain.prompts.prompt import Prompt
from streams.domain.prompts.request import is_slug

log = structlog.get_logger(__name__)

routes = web.RouteTableDef()


@routes.post("/v1/batches/from-prompt")
async def create(request: web.Request) -> web.Response:
    """Makes a file with a line for each row, and a batch on it.

    With an Idempotency-Key a repeat makes neither again.
    """
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    async with gateway.makings.now(tenant, "batches"):
        asked = await read_prompt_batch(request, gateway.settings.completion_windows)
        batch = await _known(gateway, tenant, asked) or await _made(gateway, tenant, asked)
    return views.answer(gateway.shown(batch))


async def _known(gateway: Gateway, tenant: str, asked: PromptBatchRequest) -> BatchSnapshot | None:
    """The batch that an earlier request with this key made. Raises Conflict."""
    key = asked.batch.idempotency_key
    return None if key is None else await created_before(gateway, tenant, key, asked.hash)


async def _made(gateway: Gateway, tenant: str, asked: PromptBatchRequest) -> BatchSnapshot:
    if not is_slug(asked.prompt.slug):
        raise no_prompt(checks.shortened(asked.prompt.slug))
    version = await found_version(gateway, tenant, asked.prompt.slug, asked.prompt.version)
    prompt = await compiled(gateway, version.text)
    if asked.prompt.model is None and prompt.model is None:
        raise InvalidRequest(
            "Missing required parameter: 'model'. The prompt names none.",
            param="model",
            code="missing_required_parameter",
        )
    file = await _file(gateway, tenant, asked, prompt)
    batch = await create_batch(
        gateway,
        tenant,
        dataclasses.replace(asked.batch, input_file_id=file.file_id),
        asked.hash or None,
    )
    log.info(
        "A batch was made from a prompt.",
        action="batch_from_prompt",
        batch_id=batch.batch_id,
        file_id=file.file_id,
        size_bytes=file.object.size_bytes,
    )
    return batch


async def _file(
    gateway: Gateway, tenant: str, asked: PromptBatchRequest, prompt: Prompt
) -> FileRecord:
    """The file of lines; the one that an earlier try of the same request has stored."""
    file_id = None
    if asked.batch.idempotency_key is not None:
        file_id = idempotent_file_id(tenant, asked.batch.idempotency_key, asked.hash)
        known = await gateway.file(tenant, file_id)
        if known is not None:
            return known
    lines = _lines(gateway, asked, prompt)
    record = await store_lines(
        gateway, tenant, one_by_one(lines), f"{asked.prompt.slug}.jsonl", file_id
    )
    await gateway.publish(FILE, record.file_id, record)
    return record


def _lines(gateway: Gateway, asked: PromptBatchRequest, prompt: Prompt) -> Iterator[bytes]:
    """The lines, each judged as validation will. Raises InvalidRequest, which names the row."""
    settings = gateway.settings
    rows = rows_of(
        asked.variables,
        max_rows=settings.max_batch_lines,
        max_row_bytes=settings.max_line_bytes,
    )
    judged = _judged(rows, asked, prompt)
    try:
        made = batch_lines(asked.prompt, judged, asked.id_column, keep_id=asked.keep_id)
        for number, line in enumerate(made):
            check_row_size(len(line) - 1, f"variables[{number}]", settings.max_line_bytes)
            yield line
    except RowError as error:
        param = f"variables[{error.row - 1}]"
        if error.name is not None:
            param += f".{checks.shortened(error.name)}"
        raise InvalidRequest(
            f"Invalid '{param}': the row {error.message}.", param=param, code="invalid_value"
        ) from error


def _judged(
    rows: Iterator[dict[str, Any]], asked: PromptBatchRequest, prompt: Prompt
) -> Iterator[dict[str, Any]]:
    """The rows, up to one that lacks a variable."""
    for number, row in enumerate(rows):
        given = row
        if asked.id_column is not None and not asked.keep_id:
            given = {name: value for name, value in row.items() if name != asked.id_column}
        refusal = prompt.refusal(given)
        # A row without id is told as such, by the generator.
        if refusal is not None and (asked.id_column is None or asked.id_column in row):
            raise refused(refusal, f"variables[{number}]")
        yield row
