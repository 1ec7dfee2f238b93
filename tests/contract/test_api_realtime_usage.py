"""/v1/usage/realtime: what a tenant's real-time requests have used and cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from schemas.records import MeterSend, SendState
from schemas.topics import METER_SEND
from streams.domain.billing.prices.book import REALTIME
from streams.domain.billing.reports.of_realtime import Used, report
from streams.domain.billing.tokens import TokenType
from streams.settings import Settings
from tests.support.gateway import GatewayUnderTest, running_gateway

_BOOK = """
currency: usd
models:
  m1: {input: "2.00", cached_input: "1.00", output: "4.00"}
"""
_DAY_MS = 86_400_000
#: 2026-11-28.
_TODAY_MS = 1_795_824_000_000


@pytest.fixture
async def priced(tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    path = tmp_path / "prices.yaml"
    path.write_text(_BOOK)
    async with running_gateway(settings=Settings(prices_file=path)) as gateway:
        yield gateway


async def _sent(gateway: GatewayUnderTest, identifier: str, **fields: Any) -> None:
    """A thousand input tokens of m1 that were billed today, unless said."""
    send = {
        "watermark": 0,
        "tenant": "acme",
        "batch_id": "realtime_1",
        "endpoint": "/v1/chat/completions",
        "completion_window": REALTIME,
        "batch_created_at_ms": _TODAY_MS,
        "model": "m1",
        "token_type": "input",
        "flagged": False,
        "flush": 0,
        "tokens": 1000,
        "at_ms": _TODAY_MS,
        "state": SendState.CONFIRMED,
        "changed_at_ms": _TODAY_MS,
        **fields,
    }
    await gateway.log.send(METER_SEND, identifier, MeterSend(identifier=identifier, **send))
    await gateway.gateway.sync()


async def _get(gateway: GatewayUnderTest, tenant: str = "acme", **query: Any) -> Any:
    params = {"end_time": _TODAY_MS // 1000 + 1, **query}
    async with gateway.http(tenant).get("/v1/usage/realtime", params=params) as answer:
        return await answer.json()


async def test_usage_is_by_day_at_list_price(priced: GatewayUnderTest) -> None:
    await _sent(priced, "a")
    await _sent(priced, "b", token_type="cached_input", tokens=500)
    await _sent(priced, "c", token_type="reasoning", tokens=10, state=SendState.SENT)
    await _sent(priced, "d", batch_created_at_ms=_TODAY_MS - _DAY_MS)
    await _sent(priced, "old", batch_created_at_ms=_TODAY_MS - 40 * _DAY_MS)
    today, before = (await _get(priced))["data"]
    assert today == {
        "object": "usage",
        "day": "2026-11-28",
        "model": None,
        "usage": {
            "input_tokens": 1500,
            "input_tokens_details": {"cached_tokens": 500},
            "output_tokens": 10,
            "output_tokens_details": {"reasoning_tokens": 10},
            "total_tokens": 1510,
        },
        "cost": {"billed": "0.002540", "currency": "usd", "status": "estimate"},
    }
    assert (before["day"], before["cost"]["status"]) == ("2026-11-27", "confirmed")


async def test_an_amount_counts_once_and_as_it_stands_now(priced: GatewayUnderTest) -> None:
    await _sent(priced, "a", state=SendState.PENDING)
    await _sent(priced, "a")
    await _sent(priced, "back")
    await _sent(priced, "back", state=SendState.CANCELLED)
    await _sent(priced, "absurd", flagged=True, state=SendState.PARKED)
    await _sent(priced, "batch", completion_window="24h")
    await _sent(priced, "odd", token_type="thoughts")
    (row,) = (await _get(priced))["data"]
    assert row["usage"]["input_tokens"] == 1000


async def test_usage_by_model_says_nothing_of_a_cost_it_does_not_know(
    priced: GatewayUnderTest,
) -> None:
    await _sent(priced, "a")
    await _sent(priced, "b", model="m9")
    rows = (await _get(priced, group_by="model"))["data"]
    assert {row["model"]: row["cost"] is not None for row in rows} == {"m1": True, "m9": False}
    (whole,) = (await _get(priced, group_by=""))["data"]
    assert (whole["usage"]["input_tokens"], whole["cost"]) == (2000, None)


async def test_tenants_see_their_own_real_time_usage_only(priced: GatewayUnderTest) -> None:
    await _sent(priced, "a", tenant="rival")
    assert (await _get(priced))["data"] == []
    assert len((await _get(priced, "rival"))["data"]) == 1


async def test_all_rows_come_as_csv(priced: GatewayUnderTest) -> None:
    await _sent(priced, "a")
    params: dict[str, Any] = {"end_time": _TODAY_MS // 1000 + 1, "format": "csv"}
    async with priced.http().get("/v1/usage/realtime", params=params) as answer:
        assert answer.content_type == "text/csv"
        _, row = (await answer.text()).splitlines()
    assert row == "2026-11-28,,1000,0,0,0,0.002000,usd,confirmed"


@pytest.mark.parametrize("query", [{"group_by": "batch"}, {"limit": 3}, {"start_time": "x"}])
async def test_what_it_cannot_answer_is_refused(
    priced: GatewayUnderTest, query: dict[str, Any]
) -> None:
    async with priced.http().get("/v1/usage/realtime", params=query) as answer:
        assert answer.status == 400


def test_a_report_without_a_price_book_has_tokens_and_no_cost() -> None:
    used = Used(0, "/v1/embeddings", "m1", TokenType.INPUT, 5, confirmed=True)
    (row,) = report([used], None, by_day=False, by_model=False)
    assert (row.usage.input_tokens, row.priced) == (5, False)
