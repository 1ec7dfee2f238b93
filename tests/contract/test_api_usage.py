"""/v1/usage: what a tenant's batches have used and cost."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from api.accounts.keys import create_key
from api.gateway import MAX_SCANS, SHARE
from schemas.records import BatchStatus, ModelUsage, Usage
from streams.settings import Settings
from tests.support.gateway import GatewayUnderTest, running_gateway

_BOOK = """
currency: usd
models:
  m1: {input: "2.00", output: "4.00"}
  m2: {input: "1.00", output: "1.00"}
"""
_DAY_MS = 86_400_000
#: 2026-11-28, noon.
_NOW_MS = 1_795_867_200_000
_ENDED: dict[str, Any] = {"status": BatchStatus.COMPLETED, "completed_at_ms": _NOW_MS}


@pytest.fixture
async def priced(tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    path = tmp_path / "prices.yaml"
    path.write_text(_BOOK)
    async with running_gateway(settings=Settings(prices_file=path)) as gateway:
        yield gateway


async def _batch(
    gateway: GatewayUnderTest, days_ago: int = 0, tenant: str = "acme", **fields: Any
) -> str:
    """A batch created so many days ago, at noon, of a thousand tokens of m1 unless said."""
    batch_id = await gateway.create(tenant=tenant)
    fields = {"model": "m1", "usage": Usage(input_tokens=1000), "completed": 3, **fields}
    await gateway.show(batch_id, created_at_ms=_NOW_MS - days_ago * _DAY_MS, **fields)
    return batch_id


async def _get(gateway: GatewayUnderTest, tenant: str = "acme", **query: Any) -> Any:
    params = {"end_time": _NOW_MS // 1000 + 1, **query}
    async with gateway.http(tenant).get("/v1/usage", params=params) as answer:
        return await answer.json()


async def test_usage_is_by_day_of_the_batches_creation_newest_first(
    priced: GatewayUnderTest,
) -> None:
    await _batch(priced, 2, **_ENDED, failed=1)
    await _batch(priced, 0, **_ENDED)
    await _batch(priced, 2, usage=Usage(input_tokens=500, output_tokens=100))
    await _batch(priced, 31)
    found = await _get(priced)
    assert (found["object"], found["has_more"], found["next_page"]) == ("list", False, None)
    today, before = found["data"]
    assert today["day"] == "2026-11-28"
    assert today["cost"] == {
        "list": "0.002000",
        "discount": "0.001000",
        "billed": "0.001000",
        "currency": "usd",
        "status": "confirmed",
    }
    assert before == {
        "object": "usage",
        "day": "2026-11-26",
        "model": None,
        "batch_id": None,
        "api_key_id": None,
        "api_key_name": None,
        "batches": 2,
        "completed": 6,
        "failed": 1,
        "usage": {
            "input_tokens": 1500,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 100,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 1600,
        },
        "cost": {
            "list": "0.003400",
            "discount": "0.001700",
            "billed": "0.001700",
            "currency": "usd",
            "status": "estimate",
        },
    }


async def test_usage_by_model_tells_the_parts_of_batches_with_several(
    priced: GatewayUnderTest,
) -> None:
    parts = (
        ModelUsage(model="m1", usage=Usage(input_tokens=10)),
        ModelUsage(model="m2", usage=Usage(output_tokens=30)),
    )
    whole = Usage(input_tokens=10, output_tokens=30)
    await _batch(priced, **_ENDED)
    await _batch(priced, **_ENDED, model=None, usage=whole, usage_by_model=parts)
    await _batch(priced, **_ENDED, model=None, usage=whole)
    rows = (await _get(priced, group_by="model"))["data"]
    assert [(row["model"], row["batches"]) for row in rows] == [("m1", 2), ("m2", 1), (None, 1)]
    assert [row["usage"]["total_tokens"] for row in rows] == [1010, 30, 40]
    assert [row["cost"] and row["cost"]["list"] for row in rows] == ["0.002020", "0.000030", None]
    assert [row["completed"] for row in rows] == [None, None, None]


async def test_pages_of_batches_go_on_behind_the_last_one(priced: GatewayUnderTest) -> None:
    made = [await _batch(priced, days) for days in (3, 2, 1)]
    first = await _get(priced, group_by="batch,day", limit=2)
    assert [row["batch_id"] for row in first["data"]] == [made[2], made[1]]
    assert (first["has_more"], first["next_page"]) == (True, made[1])
    rest = await _get(priced, group_by="batch,day", limit=2, after=first["next_page"])
    assert [(row["batch_id"], row["day"]) for row in rest["data"]] == [(made[0], "2026-11-25")]
    assert (rest["has_more"], rest["next_page"]) == (False, None)
    older = (_NOW_MS - 2 * _DAY_MS) // 1000
    found = await _get(priced, group_by="batch", after=made[2], end_time=older)
    assert [row["batch_id"] for row in found["data"]] == [made[0]]


async def test_pages_of_days_hold_whole_days(priced: GatewayUnderTest) -> None:
    for days in (2, 1, 1, 0):
        await _batch(priced, days)
    first = await _get(priced, limit=2)
    assert [(row["day"], row["batches"]) for row in first["data"]] == [
        ("2026-11-28", 1),
        ("2026-11-27", 2),
    ]
    rest = await _get(priced, limit=2, after=first["next_page"])
    assert [row["day"] for row in rest["data"]] == ["2026-11-26"]
    assert rest["has_more"] is False


async def test_only_the_time_that_is_asked_for_counts(priced: GatewayUnderTest) -> None:
    for days in (3, 2, 1):
        await _batch(priced, days)
    start = (_NOW_MS - 2 * _DAY_MS) // 1000
    rows = (await _get(priced, start_time=start, end_time=start + 1))["data"]
    assert [row["day"] for row in rows] == ["2026-11-26"]


async def test_many_batches_are_summed_up_whole(priced: GatewayUnderTest) -> None:
    for _ in range(105):
        await _batch(priced)
    (row,) = (await _get(priced, group_by=""))["data"]
    assert (row["batches"], row["usage"]["input_tokens"]) == (105, 105_000)


async def test_tenants_see_their_own_usage_only(priced: GatewayUnderTest) -> None:
    batch_id = await _batch(priced)
    assert (await _get(priced, tenant="rival"))["data"] == []
    refused = await _get(priced, tenant="rival", group_by="batch", after=batch_id)
    assert refused["error"]["param"] == "after"


async def test_without_a_price_book_there_are_tokens_and_no_cost(gateway: GatewayUnderTest) -> None:
    await _batch(gateway)
    (row,) = (await _get(gateway))["data"]
    assert (row["usage"]["input_tokens"], row["cost"]) == (1000, None)


@pytest.mark.parametrize("how", [{"format": "csv"}, {}])
async def test_csv_has_every_row(priced: GatewayUnderTest, how: dict[str, str]) -> None:
    made = [await _batch(priced, days, **_ENDED) for days in range(35, 0, -1)]
    params = {"end_time": str(_NOW_MS // 1000), "start_time": "1790000000", "group_by": "batch"}
    headers = {} if how else {"Accept": "text/csv"}
    async with priced.http().get("/v1/usage", params={**params, **how}, headers=headers) as answer:
        assert answer.content_type == "text/csv"
        rows = list(csv.DictReader(io.StringIO(await answer.text())))
    assert [row["batch_id"] for row in rows] == made[::-1]
    assert (rows[0]["input_tokens"], rows[0]["billed"], rows[0]["model"]) == (
        "1000",
        "0.001000",
        "",
    )


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"group_by": "colour"}, "group_by"),
        ({"start_time": "yesterday"}, "start_time"),
        ({"start_time": 0}, "start_time"),
        ({"limit": 0}, "limit"),
        ({"format": "xml"}, "format"),
        ({"format": "csv", "limit": 3}, "format"),
        ({"after": "today"}, "after"),
        ({"group_by": "model", "after": "x"}, "after"),
        ({"bucket": "day"}, "bucket"),
    ],
)
async def test_a_report_that_means_nothing_is_refused(
    gateway: GatewayUnderTest, query: dict[str, Any], param: str
) -> None:
    assert (await _get(gateway, **query))["error"]["param"] == param


async def test_usage_by_key_names_the_keys_that_made_the_batches(priced: GatewayUnderTest) -> None:
    nightly, _ = await create_key(priced.log, "acme", "nightly")
    await priced.gateway.sync()
    await _batch(priced, 1, key_id=nightly.key_id)
    await _batch(priced, 0, key_id=nightly.key_id)
    await _batch(priced, 0, key_id=None)
    await _batch(priced, 0, tenant="rival")
    rows = (await _get(priced, group_by="key"))["data"]
    assert [(row["api_key_id"], row["api_key_name"], row["batches"]) for row in rows] == [
        (nightly.key_id, "nightly", 2),
        (None, None, 1),
    ]
    assert [row["cost"]["list"] for row in rows] == ["0.004000", "0.002000"]
    by_day = (await _get(priced, group_by="day,key,model"))["data"]
    assert [(row["day"], row["api_key_name"], row["model"]) for row in by_day] == [
        ("2026-11-28", "nightly", "m1"),
        ("2026-11-28", None, "m1"),
        ("2026-11-27", "nightly", "m1"),
    ]
    params = {"end_time": str(_NOW_MS // 1000 + 1), "group_by": "key", "format": "csv"}
    async with priced.http().get("/v1/usage", params=params) as answer:
        cells = list(csv.DictReader(io.StringIO(await answer.text())))
    assert [(row["api_key_name"], row["billed"]) for row in cells] == [
        ("nightly", "0.002000"),
        ("", "0.001000"),
    ]


async def test_whoever_reads_its_csv_slowly_keeps_nobody_else_from_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stalled, go_on = asyncio.Semaphore(0), asyncio.Event()
    write = web.StreamResponse.write

    async def dripping(self: web.StreamResponse, data: bytes) -> None:
        stalled.release()
        await go_on.wait()
        await write(self, data)

    monkeypatch.setattr("api.routes.usage._AT_ONCE", 1)
    monkeypatch.setattr(web.StreamResponse, "write", dripping)
    slow = [f"slow{number}" for number in range(MAX_SCANS)]
    async with running_gateway(tenants=("acme", *slow)) as gateway:
        for tenant in slow:
            await _batch(gateway, tenant=tenant)
        reading = []
        for tenant in slow * SHARE:
            reading.append(asyncio.create_task(_csv_of(gateway, tenant)))
            await stalled.acquire()
        assert (await _get(gateway))["object"] == "list"
        assert (await _get(gateway, slow[0]))["error"]["code"] == "too_many_at_once"
        go_on.set()
        assert [len(rows) for rows in await asyncio.gather(*reading)] == [1] * len(reading)


async def _csv_of(gateway: GatewayUnderTest, tenant: str) -> list[dict[str, str]]:
    params = {"end_time": str(_NOW_MS // 1000 + 1), "group_by": "batch", "format": "csv"}
    async with gateway.http(tenant).get("/v1/usage", params=params) as answer:
        return list(csv.DictReader(io.StringIO(await answer.text())))
