"""/v1/usage/realtime: what a tenant's real-time requests have used and cost. The route is ours."""

from __future__ import annotations

import csv
import io
from typing import Any

from aiohttp import hdrs, web

from api import views
from api.auth import TENANT
from api.gateway import GATEWAY
from api.routes.usage_query import day_of, realtime_usage_query
from streams.domain.billing.prices.book import PriceBook
from streams.domain.billing.prices.cost import money
from streams.domain.billing.reports.of_realtime import Row, Used, report
from streams.domain.billing.tokens import TokenType

_COLUMNS = (
    *("day", "model", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"),
    *("billed", "currency", "status"),
)

routes = web.RouteTableDef()


@routes.get("/v1/usage/realtime")
async def realtime_usage(request: web.Request) -> web.Response:
    """All rows of the time that is asked for, as JSON or CSV."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    query, book = realtime_usage_query(request, gateway.clock), gateway.prices.current()
    sums = await gateway.realtime_usage.sums(tenant, query.start_s, query.end_s)
    used = [
        Used(
            day_ms=found.day_s * 1000,
            endpoint=found.endpoint,
            model=found.model,
            token_type=TokenType(found.token_type),
            tokens=found.tokens,
            confirmed=bool(found.confirmed),
        )
        for found in sums
    ]
    rows = report(used, book, by_day="day" in query.groups, by_model="model" in query.groups)
    cells = [_cells(row, book) for row in rows]
    if query.csv:
        return web.Response(
            text=_csv(cells), headers={hdrs.CONTENT_TYPE: "text/csv; charset=utf-8"}
        )
    data = [_shown(row, found) for row, found in zip(rows, cells, strict=True)]
    return views.answer({"object": "list", "data": data, "has_more": False})


def _cells(row: Row, book: PriceBook | None) -> dict[str, Any]:
    """A row's cells by column; None is nothing in CSV."""
    cells: dict[str, Any] = dict.fromkeys(_COLUMNS)
    cells |= {
        "day": None if row.day_ms is None else day_of(row.day_ms // 1000),
        "model": row.model,
        "input_tokens": row.usage.input_tokens,
        "cached_tokens": row.usage.cached_tokens,
        "output_tokens": row.usage.output_tokens,
        "reasoning_tokens": row.usage.reasoning_tokens,
    }
    if book is not None and row.priced:
        cells |= {
            "billed": money(row.micros),
            "currency": book.currency,
            "status": "confirmed" if row.confirmed else "estimate",
        }
    return cells


def _shown(row: Row, cells: dict[str, Any]) -> dict[str, Any]:
    named = ("billed", "currency", "status")
    return {
        "object": "usage",
        "day": cells["day"],
        "model": cells["model"],
        "usage": views.usage(row.usage),
        "cost": None if cells["billed"] is None else {name: cells[name] for name in named},
    }


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
