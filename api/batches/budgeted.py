"""What a new batch will cost, where a budget limits that."""

from __future__ import annotations

import asyncio

import structlog

from api.batches.estimate import estimate
from api.batches.request import CreateRequest
from api.errors import InvalidRequest
from api.gateway import Gateway
from schemas.records import FileRecord
from streams.domain.batch.tasks import INPUT_PURPOSE
from streams.domain.billing.prices.book import PriceBook
from streams.domain.billing.prices.cost import NoPriceError, cost
from streams.ports.object_store import ObjectStoreError

log = structlog.get_logger(__name__)

#: Whoever creates a batch waits for its estimate, and no longer than that.
_PATIENCE_S = 30.0


async def estimated_cost(
    gateway: Gateway, asked: CreateRequest, file: FileRecord | None
) -> int | None:
    """Micro-units of the currency; None where no budget applies, or it can't be said.

    A create is never refused for it. Reads the whole file.
    """
    book = gateway.prices.current()
    if book is None or file is None or file.purpose != INPUT_PURPOSE:
        return None
    if not await gateway.queries.has_budget(file.tenant, asked.key_id):
        return None
    try:
        async with asyncio.timeout(_PATIENCE_S), gateway.scans.wait(file.tenant):
            return await _cost(gateway, asked, file, book)
    except (TimeoutError, InvalidRequest, NoPriceError, ObjectStoreError) as error:
        log.info(
            "A batch was created without an estimate of its cost.",
            action="cost_not_estimated",
            error=type(error).__name__,
        )
        return None


async def _cost(
    gateway: Gateway, asked: CreateRequest, file: FileRecord, book: PriceBook
) -> int | None:
    """Raises InvalidRequest, NoPriceError, ObjectStoreError."""
    found = await estimate(gateway, file, asked.endpoint)
    used = {one.model: one.usage for one in found.models if one.model is not None}
    if len(used) < len(found.models):
        return None
    return cost(
        book,
        used,
        endpoint=asked.endpoint,
        window=asked.completion_window,
        created_at_ms=gateway.clock.now_ms(),
    ).billed_micros
