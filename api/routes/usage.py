"""/v1/usage: what a tenant's batches have used and cost. The route is ours.

Rows are summed from what the read model knows of batches, a few hundred at a time and newest
first; so a page ends after whole days or batches, and memory holds one bucket's rows.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import hdrs, web

from api import views
from api.auth import TENANT
from api.gateway import GATEWAY, Gateway
from api.read_model.schema import ended_at_ms
from api.routes.paging import unknown_after
from api.routes.usage_query import UsageQuery, day_of, day_start_s, usage_query
from api.shares import Place
from api.views import JSON
from schemas.records import BatchSnapshot
from streams.domain.billing.prices.book import PriceBook
from streams.domain.billing.prices.cost import money
from streams.domain.billing.reports.by_batch import Row, Rows

#: Batches read at once, about a millisecond of work, and rows of CSV sent at once.
_AT_ONCE = 100
_COLUMNS = (
    *("day", "model", "batch_id", "api_key_id", "api_key_name"),
    *("batches", "completed", "failed"),
    *("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"),
    *("list", "discount", "billed", "currency", "status"),
)

routes = web.RouteTableDef()


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of one day or one batch, whichever is asked for, or of all. names: of keys, by id."""

    key: str
    day: str | None
    batch_id: str | None
    rows: Rows
    names: Mapping[str, str]


@routes.get("/v1/usage")
async def usage(request: web.Request) -> web.StreamResponse:
    """A page of rows as JSON, or all of them as CSV."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    query = usage_query(request, gateway.clock)
    async with gateway.scans.now(tenant, "reports") as place:
        book = gateway.prices.current()
        after, query = await _behind(gateway, tenant, query)
        async with aclosing(_buckets(gateway, tenant, query, after, book)) as buckets:
            if query.csv:
                return await _send_csv(request, place, buckets, book)
            return await _page(buckets, query, book)


async def _page(
    buckets: AsyncIterator[Bucket], query: UsageQuery, book: PriceBook | None
) -> web.Response:
    data: list[JSON] = []
    count, last = 0, None
    async for bucket in buckets:
        if count == query.limit:
            break
        count, last = count + 1, bucket.key
        data += [_row(row, bucket, book) for row in bucket.rows]
    else:
        last = None
    return views.answer(
        {"object": "list", "data": data, "has_more": last is not None, "next_page": last}
    )


async def _send_csv(
    request: web.Request, place: Place, buckets: AsyncIterator[Bucket], book: PriceBook | None
) -> web.StreamResponse:
    stalled_s = request.app[GATEWAY].timeouts.stalled_s
    response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "text/csv; charset=utf-8"})
    await response.prepare(request)
    cells = [dict[str, Any](zip(_COLUMNS, _COLUMNS, strict=True))]
    async for bucket in buckets:
        cells += [_cells(row, bucket, book) for row in bucket.rows]
        if len(cells) < _AT_ONCE:
            continue
        # A client may read as slowly as it likes, in nobody's place.
        async with place.lent(), asyncio.timeout(stalled_s):
            await response.write(_csv(cells))
        cells = []
    place.free()
    async with asyncio.timeout(stalled_s):
        await response.write(_csv(cells))
        await response.write_eof()
    return response


async def _behind(
    gateway: Gateway, tenant: str, query: UsageQuery
) -> tuple[tuple[int, str] | None, UsageQuery]:
    """The place in the tenant's list of batches that the page begins behind."""
    if query.after is None:
        return None, query
    if query.bucket == "day":
        return None, replace(query, end_s=min(query.end_s, day_start_s(query.after)))
    wanted = query.after
    place = await gateway.surely(lambda: gateway.queries.batch_place(tenant, wanted))
    if place is None:
        raise unknown_after(wanted)
    return place, query


async def _buckets(
    gateway: Gateway,
    tenant: str,
    query: UsageQuery,
    after: tuple[int, str] | None,
    book: PriceBook | None,
) -> AsyncGenerator[Bucket, None]:
    """The buckets of the time that is asked for, newest first; those without rows left out."""
    names = await gateway.queries.key_names(tenant) if "key" in query.groups else {}
    bucket: Bucket | None = None
    async for batch in _batches(gateway, tenant, query, after):
        key = _key(batch, query)
        if bucket is None or bucket.key != key:
            if bucket is not None:
                yield bucket
            bucket = _bucket(
                batch,
                key,
                query,
                Rows(book, by_model="model" in query.groups, by_key="key" in query.groups),
                names,
            )
        bucket.rows.add(batch, running=ended_at_ms(batch) is None)
    if bucket is not None:
        yield bucket


async def _batches(
    gateway: Gateway, tenant: str, query: UsageQuery, after: tuple[int, str] | None
) -> AsyncGenerator[BatchSnapshot, None]:
    place = min(after or (query.end_s, ""), (query.end_s, ""))
    while True:
        found = await gateway.queries.batches(tenant, place, _AT_ONCE)
        for batch in found:
            if batch.created_at_ms // 1000 < query.start_s:
                return
            yield batch
        if len(found) < _AT_ONCE:
            return
        place = (found[-1].created_at_ms // 1000, found[-1].batch_id)


def _key(batch: BatchSnapshot, query: UsageQuery) -> str:
    match query.bucket:
        case "batch":
            return batch.batch_id
        case "day":
            return day_of(batch.created_at_ms // 1000)
        case _:
            return ""


def _bucket(
    batch: BatchSnapshot, key: str, query: UsageQuery, rows: Rows, names: Mapping[str, str]
) -> Bucket:
    return Bucket(
        key,
        day_of(batch.created_at_ms // 1000) if "day" in query.groups else None,
        batch.batch_id if "batch" in query.groups else None,
        rows,
        names,
    )


def _row(row: Row, bucket: Bucket, book: PriceBook | None) -> JSON:
    cells = _cells(row, bucket, book)
    named = ("list", "discount", "billed", "currency", "status")
    return {
        "object": "usage",
        **{name: cells[name] for name in _COLUMNS[:8]},
        "usage": views.usage(row.usage),
        "cost": None if cells["list"] is None else {name: cells[name] for name in named},
    }


def _cells(row: Row, bucket: Bucket, book: PriceBook | None) -> dict[str, Any]:
    """A row's cells by column; None is nothing in CSV."""
    by_model, used = bucket.rows.by_model, row.usage
    cells: dict[str, Any] = dict.fromkeys(_COLUMNS)
    cells |= {
        "day": bucket.day,
        "model": row.model,
        "batch_id": bucket.batch_id,
        "api_key_id": row.key_id,
        "api_key_name": None if row.key_id is None else bucket.names.get(row.key_id),
        "batches": row.batches,
        "completed": None if by_model else row.completed,
        "failed": None if by_model else row.failed,
        "input_tokens": used.input_tokens,
        "cached_tokens": used.cached_tokens,
        "output_tokens": used.output_tokens,
        "reasoning_tokens": used.reasoning_tokens,
    }
    if book is not None and row.priced:
        cells |= {
            "list": money(row.list_micros),
            "discount": money(row.list_micros - row.billed_micros),
            "billed": money(row.billed_micros),
            "currency": book.currency,
            "status": "estimate" if row.running else "confirmed",
        }
    return cells


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, _COLUMNS).writerows(rows)
    return text.getvalue().encode()
