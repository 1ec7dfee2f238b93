"""What the Stripe adapter makes of Stripe's answers, and what it asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from streams.adapters.meter_stripe import API_VERSION, StripeMeterSink
from streams.ports.meter_sink import EventRefused, MeterEvent, RefusalCode, SinkUnavailable

_EVENT = MeterEvent(
    identifier="batch_1:abc:0",
    event_name="backhaul_batch_input_tokens",
    customer="cus_1",
    tokens=12_345,
    at_ms=1_700_000_000_999,
    dimensions={"model": "m"},
)


@dataclass
class Stripe:
    """A server that answers as scripted, and keeps what it was asked."""

    status: int = 200
    error: dict[str, str] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    forms: list[dict[str, str]] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    #: Meters of one name.
    meters: int = 1
    paths: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        self.versions.append(request.headers.get("Stripe-Version", ""))
        self.forms.append({k: str(v) for k, v in (await request.post()).items()})
        if self.error is not None:
            body: dict[str, Any] = {"error": {"type": "invalid_request_error", **self.error}}
        elif request.path.endswith("/meters"):
            data: list[dict[str, Any]] = [
                {"object": "billing.meter", "id": f"mtr_{n}", "event_name": _EVENT.event_name}
                for n in range(self.meters)
            ]
            body = {"object": "list", "data": data, "has_more": False, "url": "/v1"}
        elif request.path.endswith("/event_summaries"):
            data = [{"object": "billing.meter_event_summary", "id": "s", "aggregated_value": 7.0}]
            body = {"object": "list", "data": data, "has_more": False, "url": "/v1"}
        else:
            body = {"object": "billing.meter_event"}
        return web.json_response(body, status=self.status, headers=self.headers)


@asynccontextmanager
async def _stripe(server: Stripe) -> AsyncIterator[StripeMeterSink]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    async with TestServer(app) as running:
        sink = StripeMeterSink("sk_test_1", str(running.make_url("")).rstrip("/"))
        try:
            yield sink
        finally:
            await sink.close()


async def test_an_event_is_strings_and_whole_numbers_under_a_pinned_version() -> None:
    server = Stripe()
    async with _stripe(server) as sink:
        await sink.send(_EVENT)
    assert server.versions == [API_VERSION]
    assert server.forms == [
        {
            "event_name": "backhaul_batch_input_tokens",
            "identifier": "batch_1:abc:0",
            "payload[stripe_customer_id]": "cus_1",
            "payload[value]": "12345",
            "payload[model]": "m",
            "timestamp": "1700000000",
        }
    ]


async def test_sums_are_those_of_the_summaries() -> None:
    async with _stripe(Stripe()) as sink:
        assert await sink.total("cus_1", _EVENT.event_name, 0, 60_000) == 7
        with pytest.raises(EventRefused, match="no_meter"):
            await sink.total("cus_1", "unknown", 0, 60_000)


async def test_the_sums_of_a_meter_that_was_made_anew_are_those_of_the_one_before_too() -> None:
    server = Stripe(meters=2)
    async with _stripe(server) as sink:
        assert await sink.total("cus_1", _EVENT.event_name, 0, 60_000) == 14
    asked = [path for path in server.paths if path.endswith("/event_summaries")]
    assert asked == [f"/v1/billing/meters/mtr_{number}/event_summaries" for number in (0, 1)]


async def test_an_identifier_that_stripe_knows_is_as_good_as_taken() -> None:
    error = {"message": "An event already exists with identifier batch_1:abc:0."}
    async with _stripe(Stripe(400, error)) as sink:
        await sink.send(_EVENT)


async def test_an_event_that_was_taken_back_before_is_as_good_as_taken_back() -> None:
    error = {"message": "This meter event has already been cancelled."}
    async with _stripe(Stripe(400, error)) as sink:
        await sink.cancel("batch_1:abc:0", _EVENT.event_name)
    late = {"message": "Meter events can be cancelled within 24 hours only."}
    async with _stripe(Stripe(400, late)) as sink:
        with pytest.raises(EventRefused):
            await sink.cancel("batch_1:abc:0", _EVENT.event_name)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(429, "rate_limited"), (500, "server_error"), (503, "server_error"), (401, "not_allowed")],
)
async def test_what_may_work_later_is_told_apart_from_a_refusal(status: int, reason: str) -> None:
    server = Stripe(status, {"message": "no"}, {"Retry-After": "7"})
    async with _stripe(server) as sink:
        with pytest.raises(SinkUnavailable) as caught:
            await sink.send(_EVENT)
    assert caught.value.reason == reason
    assert caught.value.retry_after_s is not None
    assert len(server.forms) == 1, "the adapter repeats nothing by itself"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"code": "archived_meter"}, RefusalCode.ARCHIVED_METER),
        ({"message": "No active meter found", "param": "event_name"}, RefusalCode.NO_METER),
        ({"param": "payload[stripe_customer_id]"}, RefusalCode.CUSTOMER_NOT_FOUND),
        ({"param": "timestamp", "message": "in the future"}, RefusalCode.TIMESTAMP_IN_FUTURE),
        ({"param": "timestamp", "message": "too old"}, RefusalCode.TIMESTAMP_TOO_OLD),
        ({"message": "?"}, RefusalCode.INVALID_REQUEST),
    ],
)
async def test_a_refusal_has_stripe_s_own_code(error: dict[str, str], code: RefusalCode) -> None:
    async with _stripe(Stripe(400, error)) as sink:
        with pytest.raises(EventRefused) as caught:
            await sink.send(_EVENT)
    assert caught.value.code is code


async def test_a_server_that_is_not_there_may_be_there_later() -> None:
    sink = StripeMeterSink("sk_test_1", "http://127.0.0.1:9")
    with pytest.raises(SinkUnavailable, match="timeout"):
        await sink.send(_EVENT)
    await sink.close()
