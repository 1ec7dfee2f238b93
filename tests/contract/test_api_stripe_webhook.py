"""POST /stripe/webhook over HTTP, on a fake of Stripe's events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from api.app import stripe_events_of
from api.routes.stripe_webhook import MAX_AT_ONCE, MAX_BYTES
from schemas.metrics import Metrics
from schemas.records import BillingReport, BillingReportError
from schemas.topics import BILLING_REPORT
from streams.adapters.stripe_events_fake import FakeStripeEvents
from streams.domain.clock import SystemClock
from streams.settings import Settings
from tests.support.gateway import GatewayUnderTest, running_gateway
from tests.support.waiting import eventually

PATH = "/stripe/webhook"
_ERRORS = (
    BillingReportError(code="archived_meter", count=3, identifiers=("batch_1:abc:0",)),
    BillingReportError(code="brand_new", count=2, identifiers=()),
)


@dataclass
class World:
    """A gateway that Stripe tells of things."""

    gateway: GatewayUnderTest
    events: FakeStripeEvents
    metrics: Metrics

    async def tell(
        self, event_id: str = "evt_1", *, signature: str | None = None, **changes: Any
    ) -> tuple[int, Any]:
        """Posts a notice, signed if no signature is given; the answer."""
        notice = {
            "id": event_id,
            "object": "v2.core.event",
            "type": "v1.billing.meter.error_report_triggered",
            "related_object": {"id": "mtr_1", "type": "billing.meter"},
            **changes,
        }
        body = json.dumps(notice).encode()
        signed = self.events.sign(body) if signature is None else signature
        return await self.post(body, {"Stripe-Signature": signed})

    async def post(self, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        session = self.gateway.http(tenant=None)
        async with session.post(PATH, data=body, headers=headers) as answer:
            return answer.status, await answer.json()

    def reports(self) -> list[BillingReport]:
        found = [read.record for read in self.gateway.log.of(BILLING_REPORT)]
        return [report for report in found if isinstance(report, BillingReport)]

    def counted(self, code: str) -> float | None:
        name = "backhaul_billing_reported_errors_total"
        return self.metrics.registry.get_sample_value(name, {"code": code})


@asynccontextmanager
async def _world() -> AsyncIterator[World]:
    events, metrics = FakeStripeEvents(SystemClock(), {"evt_1": _ERRORS}), Metrics()
    async with running_gateway(stripe_events=events, metrics=metrics) as gateway:
        yield World(gateway, events, metrics)


async def test_a_report_is_in_the_log_and_counted_by_code() -> None:
    async with _world() as world:
        status, answer = await world.tell()
        assert (status, answer) == (200, {"received": True})
        (report,) = world.reports()
        assert (report.event_id, report.meter_id, report.asked) == ("evt_1", "mtr_1", True)
        assert report.errors == _ERRORS
        assert [read.key for read in world.gateway.log.of(BILLING_REPORT)] == ["evt_1"]
        assert (world.counted("archived_meter"), world.counted("other")) == (3, 2)


async def test_an_event_that_comes_again_is_asked_for_and_counted_once() -> None:
    async with _world() as world:
        for _ in range(3):
            assert (await world.tell())[0] == 200
        assert world.events.asked == ["evt_1"]
        assert len(world.reports()) == 1
        assert world.counted("archived_meter") == 3


async def test_a_report_whose_errors_are_not_known_is_kept_all_the_same() -> None:
    async with _world() as world:
        assert (await world.tell("evt_2", related_object=None))[0] == 200
        (report,) = world.reports()
        assert (report.asked, report.errors, report.meter_id) == (False, (), None)
        assert world.counted("other") == 1


async def test_other_events_are_taken_and_nothing_follows() -> None:
    async with _world() as world:
        assert (await world.tell(type="v2.core.event_destination.ping"))[0] == 200
        assert world.events.asked == []
        assert world.reports() == []


async def test_while_stripe_can_not_be_asked_it_is_to_come_again() -> None:
    async with _world() as world:
        world.events.available = False
        assert (await world.tell())[0] == 503
        assert world.reports() == []
        world.events.available = True
        assert (await world.tell())[0] == 200
        assert len(world.reports()) == 1


@pytest.mark.parametrize("signature", ["", "1:2", "x" * 4000])
async def test_a_bad_signature_is_answered_without_a_detail_and_asks_nobody(
    signature: str,
) -> None:
    async with _world() as world:
        status, answer = await world.tell(signature=signature)
        assert status == 400
        assert answer["error"]["message"] == "This is no event of Stripe's."
        assert (world.events.asked, world.reports()) == ([], [])


async def test_a_large_body_is_refused_before_it_is_checked() -> None:
    async with _world() as world:
        body = b" " * (MAX_BYTES + 1)
        assert (await world.post(body, {"Stripe-Signature": world.events.sign(body)}))[0] == 413


async def test_whoever_sends_slowly_keeps_neither_others_nor_other_paths_waiting() -> None:
    async with _world() as world:
        lines = [f"POST {PATH} HTTP/1.1", "Host: x", "Content-Length: 9", "", ""]
        writers = []
        for _ in range(MAX_AT_ONCE):
            _, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
            writer.write("\r\n".join(lines).encode())
            writers.append(writer)

        async def told() -> int:
            return (await world.tell(type="other"))[0]

        await eventually(lambda: _is(told(), 503), 5, "all places are taken")
        assert await world.gateway.client().batches.list()
        for writer in writers:
            writer.close()
        await eventually(lambda: _is(told(), 200), 5, "a place is free again")


async def _is(found: Awaitable[int], expected: int) -> bool:
    return await found == expected


async def test_only_this_path_needs_no_key_and_only_post() -> None:
    async with _world() as world:
        session = world.gateway.http(tenant=None)
        async with session.get(PATH) as answer:
            assert answer.status == 405
        async with session.get("/v1/batches") as answer:
            assert answer.status == 401


async def test_without_a_secret_there_is_no_such_path() -> None:
    assert stripe_events_of(Settings(stripe_key=SecretStr("sk_test_1"))) is None
    async with running_gateway() as gateway, gateway.http(tenant=None).post(PATH) as answer:
        assert answer.status == 404


async def test_with_a_secret_stripe_s_own_library_reads_it() -> None:
    events = stripe_events_of(Settings(stripe_webhook_secret=SecretStr("whsec_1")))
    assert events is not None
    async with (
        running_gateway(stripe_events=events) as gateway,
        gateway.http(tenant=None).post(PATH, data=b"{}") as answer,
    ):
        assert answer.status == 400
    await events.close()
