"""POST /stripe/webhook over HTTP, on a fake of Stripe's events."""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
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
from streams.ports.stripe_events import Notice
from streams.settings import Settings
from tests.support.gateway import GatewayUnderTest, running_gateway

PATH = "/stripe/webhook"
Connection = tuple[StreamReader, StreamWriter]
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


async def _dripping(world: World, signature: str) -> Connection:
    """A request whose body does not come."""
    lines = [f"POST {PATH} HTTP/1.1", "Host: x", "Content-Length: 9"]
    if signature:
        lines.append(f"Stripe-Signature: {signature}")
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    writer.write("\r\n".join([*lines, "", ""]).encode())
    return reader, writer


async def _refused(connection: Connection) -> bytes:
    """The first line of the answer; the connection is closed."""
    reader, writer = connection
    async with asyncio.timeout(30):
        line = await reader.readline()
    writer.close()
    return line


@pytest.mark.parametrize("signature", ["", "t=,v1=", "1:" + "0" * 64])
async def test_what_can_not_be_signed_by_stripe_is_refused_before_its_body_is_read(
    signature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No place is left, and none is needed to be refused.
    monkeypatch.setattr("api.routes.stripe_webhook.MAX_AT_ONCE", 0)
    async with _world() as world:
        assert b" 400 " in await _refused(await _dripping(world, signature))


async def test_whoever_sends_slowly_gives_way_to_whoever_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nobody goes because the time is over.
    monkeypatch.setattr("api.routes.stripe_webhook._BODY_S", 3600.0)
    async with _world() as world:
        signature = world.events.sign(b"")
        slow = [await _dripping(world, signature) for _ in range(MAX_AT_ONCE + 4)]
        # The first four have had to go: now all places are taken.
        for connection in slow[:4]:
            assert b" 503 " in await _refused(connection)
        for _ in range(3):
            assert (await world.tell(type="other"))[0] == 200
        assert await world.gateway.client().batches.list()
        for _, writer in slow:
            writer.close()


async def test_while_stripe_is_asked_in_all_places_others_are_told_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with _world() as world:
        answered, asked = asyncio.Event(), asyncio.Semaphore(0)

        async def slow(_: Notice) -> None:
            asked.release()
            await answered.wait()

        monkeypatch.setattr(world.events, "errors", slow)
        telling = [asyncio.create_task(world.tell(f"evt_{n}")) for n in range(MAX_AT_ONCE)]
        for _ in telling:
            await asked.acquire()
        assert (await world.tell("evt_more"))[0] == 503
        answered.set()
        assert {status for status, _ in await asyncio.gather(*telling)} == {200}


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
