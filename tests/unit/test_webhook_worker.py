"""The webhook-worker on fakes: who waits for whom, crashes, disabling, deletion, replays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest

from api.log_fake import FakeLog
from schemas.codec import decode, encode
from schemas.metrics import Metrics
from schemas.records import (
    BatchEnded,
    BatchStatus,
    DeliveryState,
    OldSecret,
    Record,
    WebhookCommand,
    WebhookCommandKind,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookState,
)
from schemas.topics import WEBHOOK, WEBHOOK_DELIVERY
from streams.adapters.webhook_sender_fake import FakeWebhookSender
from streams.domain.clock import ManualClock
from streams.domain.webhooks.deliveries import Attempt
from streams.domain.webhooks.endpoints import deleted, record_key, written
from streams.domain.webhooks.events import event_id, secret_of
from streams.kafka.role import Consumed
from streams.webhook_worker.books import Books, Cause, Row
from streams.webhook_worker.endpoints import Endpoints
from streams.webhook_worker.worker import Parts, Worker
from tests.support.controller_parts import FakeGuard
from tests.support.waiting import eventually
from tests.support.webhooks import SECRET, endpoint

FAILED = Attempt(500)
PARTITIONS = 4


@dataclass
class Rows:
    """A table in a dict; rows go through the codec."""

    data: dict[str, bytes] = field(default_factory=dict)

    def put(self, key: str, row: Row, cause: Cause) -> None:
        self.data[key] = encode(row)

    def delete(self, key: str, cause: Cause) -> None:
        self.data.pop(key, None)

    def items(self) -> Iterator[tuple[str, Row]]:
        for key in list(self.data):
            yield key, cast("Row", decode(self.data[key]))


@dataclass
class Event:
    """A consumed record. live: whether its partition is still ours."""

    record: Record
    offset: int
    live: bool = True
    acked: int = 0

    def ack(self) -> None:
        self.acked += 1


class Desk:
    """A worker on fakes; before: the process whose table and topics it takes over."""

    def __init__(self, before: Desk | None = None) -> None:
        self.log: FakeLog = before.log if before else FakeLog()
        self.rows: Rows = before.rows if before else Rows()
        self.clock: ManualClock = before.clock if before else ManualClock()
        self.sender = FakeWebhookSender()
        self.broken: list[BaseException] = []
        self.books = Books(self.rows, self.log, FakeGuard())
        self.endpoints = Endpoints(self.log.reader([WEBHOOK]), self.forget)
        self.worker = Worker(
            Parts(
                books=self.books,
                endpoints=self.endpoints,
                sender=self.sender,
                guard=FakeGuard(),
                clock=self.clock,
                metrics=Metrics(),
                retry_after_s=(10.0, 100.0),
                broken=self.broken.append,
                random=lambda: 0.5,
            )
        )
        self.offset: int = before.offset if before else 0
        self.made: dict[str, WebhookEndpoint] = before.made if before else {}
        self.tasks: list[asyncio.Task[None]] = []

    def forget(self, endpoint_id: str) -> None:
        self.worker.forget(endpoint_id)

    async def start(self) -> None:
        await self.endpoints.start()
        self.tasks.append(asyncio.create_task(self.endpoints.work()))
        self.tasks.append(asyncio.create_task(self.books.publish()))
        self.books.load(range(PARTITIONS), PARTITIONS)
        await self.worker.begin()

    async def stop(self) -> None:
        await self.worker.stop()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.endpoints.stop()
        assert self.broken == []

    async def add(self, endpoint_id: str, tenant: str = "acme", **changes: Any) -> None:
        """Makes it, or changes it."""
        made = endpoint(f"https://{endpoint_id}.example/", endpoint_id, tenant)
        before = self.made.get(endpoint_id)
        now = msgspec.structs.replace(made, **changes)
        await self.write(now if before is None else written(now, before, "w"))

    async def write(self, endpoint: WebhookEndpoint) -> None:
        """Writes it as a gateway does."""
        self.made[endpoint.endpoint_id] = endpoint
        await self.log.send(WEBHOOK, record_key(endpoint), endpoint)

    async def delete(self, endpoint_id: str) -> None:
        """Deletes it as a gateway does."""
        before = self.made[endpoint_id]
        await self.write(written(deleted(before, self.clock.now_ms()), before, "w"))

    async def feed(self, record: Record, *, live: bool = True, offset: int | None = None) -> Event:
        if offset is None:
            self.offset += 1
        event = Event(record, self.offset if offset is None else offset, live)

        async def one() -> AsyncIterator[Consumed]:
            yield cast("Consumed", event)

        await self.worker.consume(one())
        return event

    async def end(self, batch_id: str, tenant: str = "acme", **how: Any) -> Event:
        ended = BatchEnded(
            batch_id=batch_id,
            tenant=tenant,
            status=how.pop("status", BatchStatus.COMPLETED),
            at_ms=self.clock.now_ms(),
        )
        return await self.feed(ended, **how)

    async def command(self, kind: WebhookCommandKind, batch_id: str = "", **how: Any) -> Event:
        command = WebhookCommand(
            tenant=how.pop("tenant", "acme"),
            endpoint_id="we_1",
            kind=kind,
            event_id=event_id(batch_id, "batch.completed"),
            event_type="batch.completed",
            at_ms=self.clock.now_ms(),
        )
        return await self.feed(command, **how)

    def sent_to(self, endpoint_id: str) -> list[str]:
        return [event for url, event in self.sender.sent if endpoint_id in url]

    def of(self, batch_id: str, endpoint_id: str = "we_1") -> WebhookDelivery:
        found = self.books.get(endpoint_id, event_id(batch_id, "batch.completed"))
        assert found is not None
        return found

    async def until(self, batch_id: str, state: DeliveryState, attempts: int | None = None) -> None:
        await eventually(
            lambda: (
                self.of(batch_id).state is state and attempts in (None, self.of(batch_id).attempts)
            ),
            5,
        )

    async def later(self, seconds: float) -> None:
        """Moves the clock; pauses are looked at again by beginning anew, as a restart does."""
        self.clock.advance(seconds)
        await self.worker.stop()
        await self.worker.begin()


@asynccontextmanager
async def working(before: Desk | None = None) -> AsyncIterator[Desk]:
    desk = Desk(before)
    await desk.start()
    try:
        yield desk
    finally:
        await desk.stop()


async def test_every_endpoint_of_the_tenant_that_asked_for_the_type_is_told_once() -> None:
    async with working() as desk:
        await desk.add("we_1")
        await desk.add("we_2", event_types=("batch.failed",))
        await desk.add("we_3", tenant="rival")
        event = await desk.end("batch_1")
        assert event.acked == 1
        await desk.until("batch_1", DeliveryState.DELIVERED)
        await desk.end("batch_1", offset=event.offset)
        await desk.end("batch_2", status=BatchStatus.FAILED)
        await eventually(lambda: len(desk.sender.sent) == 3, 5)
        assert desk.sent_to("we_2") == [event_id("batch_2", "batch.failed")]
        assert desk.sent_to("we_3") == []


async def test_a_partition_that_was_lost_meanwhile_is_neither_acked_nor_told() -> None:
    async with working() as desk:
        await desk.add("we_1")
        event = await desk.end("batch_1", live=False)
        assert (event.acked, desk.rows.data) == (0, {})


async def test_an_endpoint_that_hangs_delays_no_other_and_is_not_flooded() -> None:
    async with working() as desk:
        await desk.add("we_1")
        await desk.add("we_2")
        desk.sender.hanging.add("https://we_1.example/")
        for number in range(9):
            await desk.end(f"batch_{number}")
        await eventually(lambda: len(desk.sent_to("we_2")) == 9, 5)
        assert len(desk.sent_to("we_1")) == 2
        desk.sender.hanging.clear()
        await eventually(lambda: len(desk.sent_to("we_1")) == 9, 5)
        assert desk.sender.most["https://we_1.example/"] == 2


async def test_a_tenant_whose_endpoints_all_hang_delays_no_other_tenant() -> None:
    async with working() as desk:
        for number in range(8):
            await desk.add(f"we_a{number}")
            desk.sender.hanging.add(f"https://we_a{number}.example/")
        await desk.add("we_1", tenant="rival")
        for number in range(3):
            await desk.end(f"batch_{number}")
        await desk.end("batch_r", tenant="rival")
        await desk.until("batch_r", DeliveryState.DELIVERED)
        assert len(desk.sent_to("we_a")) == 8, "of all its endpoints together"


async def test_a_failed_attempt_waits_and_the_wait_survives_a_restart() -> None:
    async with working() as desk:
        await desk.add("we_1")
        desk.sender.attempts["https://we_1.example/"] = [FAILED]
        await desk.end("batch_1")
        await desk.until("batch_1", DeliveryState.PENDING, 1)
        assert desk.of("batch_1").next_at_ms == desk.clock.now_ms() + 10_000
    async with working(desk) as again:
        await again.later(9.0)
        assert again.sender.sent == []
        await again.later(1.0)
        await again.until("batch_1", DeliveryState.DELIVERED, 2)
        assert again.sent_to("we_1") == desk.sent_to("we_1"), "the same id"


async def test_an_attempt_that_was_cut_off_is_made_again_with_the_same_id() -> None:
    async with working() as desk:
        await desk.add("we_1")
        desk.sender.hanging.add("https://we_1.example/")
        await desk.end("batch_1")
        await eventually(lambda: desk.sender.sent, 5)
    async with working(desk) as again:
        await again.until("batch_1", DeliveryState.DELIVERED, 1)
        assert again.sent_to("we_1") == desk.sent_to("we_1")


async def test_after_a_day_in_vain_the_endpoint_is_disabled_until_it_is_enabled() -> None:
    async with working() as desk:
        await desk.add("we_1")
        desk.sender.attempts["https://we_1.example/"] = [FAILED] * 5
        await desk.end("batch_1")
        await desk.until("batch_1", DeliveryState.PENDING, 1)
        await desk.end("batch_2")
        await desk.until("batch_2", DeliveryState.PENDING, 1)
        desk.books.put(msgspec.structs.replace(desk.of("batch_2"), next_at_ms=1 << 50))
        for pause_s in (10.0, 100.0):
            await desk.later(pause_s)
            await eventually(lambda: desk.of("batch_1").next_at_ms > desk.clock.now_ms()
                             or desk.of("batch_1").state is DeliveryState.FAILED, 5)  # fmt: skip
        await desk.until("batch_1", DeliveryState.FAILED, 3)
        assert (desk.of("batch_2").state, desk.of("batch_2").error) == ("failed", "disabled")
        sent = len(desk.sender.sent)
        await desk.end("batch_3")
        await desk.command(WebhookCommandKind.REPLAY, "batch_1")
        assert (desk.of("batch_3").state, desk.of("batch_3").error) == ("failed", "disabled")
        assert len(desk.sender.sent) == sent

        desk.sender.attempts.clear()
        await desk.command(WebhookCommandKind.ENABLE)
        await desk.command(WebhookCommandKind.REPLAY, "batch_3")
        await desk.until("batch_3", DeliveryState.DELIVERED, 1)
        state = desk.books.state("acme", "we_1")
        assert (state.disabled_at_ms, state.delivered_at_ms) == (None, desk.clock.now_ms())


async def test_an_endpoint_that_is_switched_off_is_told_nothing_and_its_log_says_so() -> None:
    async with working() as desk:
        await desk.add("we_1", enabled=False)
        await desk.end("batch_1")
        await desk.until("batch_1", DeliveryState.FAILED, 0)
        assert (desk.of("batch_1").error, desk.sender.sent) == ("disabled", [])
        await desk.add("we_1")
        await desk.command(WebhookCommandKind.ENABLE)
        await desk.command(WebhookCommandKind.REPLAY, "batch_1")
        await desk.until("batch_1", DeliveryState.DELIVERED, 1)


async def test_what_waits_goes_to_the_new_address_signed_with_the_new_secret_too() -> None:
    async with working() as desk:
        await desk.add("we_1")
        desk.sender.attempts["https://we_1.example/"] = [FAILED]
        await desk.end("batch_1")
        await desk.until("batch_1", DeliveryState.PENDING, 1)
        old = OldSecret(secret=SECRET, until_ms=desk.clock.now_ms() + 60_000)
        await desk.add(
            "we_1", url="https://new.example/", secret=secret_of(bytes(32)), old_secrets=(old,)
        )
        await desk.later(10.0)
        await desk.until("batch_1", DeliveryState.DELIVERED, 2)
        assert len(desk.sent_to("new.example")) == 1
        assert [headers["webhook-signature"].count("v1,") for headers in desk.sender.headers] == [
            *(1, 2)
        ]


async def test_a_replay_has_the_same_id_and_is_only_its_tenants_to_ask() -> None:
    async with working() as desk:
        await desk.add("we_1")
        await desk.end("batch_1")
        await desk.until("batch_1", DeliveryState.DELIVERED)
        await desk.command(WebhookCommandKind.REPLAY, "batch_1", tenant="rival")
        assert desk.of("batch_1").state is DeliveryState.DELIVERED
        event = await desk.command(WebhookCommandKind.REPLAY, "batch_1")
        await eventually(lambda: len(desk.sender.sent) == 2, 5)
        await desk.until("batch_1", DeliveryState.DELIVERED)
        assert len(set(desk.sent_to("we_1"))) == 1
        await desk.command(WebhookCommandKind.REPLAY, "batch_1", offset=event.offset)
        assert desk.of("batch_1").state is DeliveryState.DELIVERED, "read again, it does nothing"


@pytest.mark.parametrize("tombstone", [False, True], ids=["now", "as version 1 did"])
async def test_a_deleted_endpoint_is_told_no_more_and_nothing_of_it_is_kept(
    *, tombstone: bool
) -> None:
    async with working() as desk:
        await desk.add("we_1")
        desk.sender.hanging.add("https://we_1.example/")
        await desk.end("batch_1")
        await eventually(lambda: desk.sender.sent, 5)
        await (desk.log.send(WEBHOOK, "we_1", None) if tombstone else desk.delete("we_1"))
        await eventually(lambda: desk.rows.data == {}, 5)
        await eventually(lambda: not desk.sender.running["https://we_1.example/"], 5)
        shown = desk.log.of
        await eventually(
            lambda: shown(WEBHOOK_DELIVERY)[-1:] and not shown(WEBHOOK_DELIVERY)[-1].record, 5
        )


async def test_what_was_deleted_while_nobody_worked_goes_at_the_start() -> None:
    async with working() as desk:
        await desk.add("we_1")
        await desk.end("batch_1")
        await desk.until("batch_1", DeliveryState.DELIVERED)
    await desk.delete("we_1")
    async with working(desk) as again:
        assert again.rows.data == {}


async def test_a_change_that_lost_against_another_is_not_signed_with_and_undoes_no_deletion() -> (
    None
):
    async with working() as desk:
        await desk.add("we_1")
        before = desk.made["we_1"]
        await desk.add("we_1", url="https://new.example/")
        loser = written(before, before, "loser")
        await desk.log.send(WEBHOOK, record_key(loser), loser)
        await desk.log.send(WEBHOOK, record_key(before), None)
        await desk.end("batch_1")
        await desk.until("batch_1", DeliveryState.DELIVERED)
        assert [url for url, _ in desk.sender.sent] == ["https://new.example/"]
        late = written(desk.made["we_1"], desk.made["we_1"], "late")
        await desk.delete("we_1")
        await desk.log.send(WEBHOOK, record_key(late), late)
        await desk.end("batch_2")
        await eventually(lambda: desk.rows.data == {}, 5)
        assert len(desk.sender.sent) == 1


async def test_the_gateways_are_shown_what_the_table_has_also_after_a_crash() -> None:
    async with working() as desk:
        await desk.add("we_1")
        await desk.end("batch_1")
        await desk.until("batch_1", DeliveryState.DELIVERED)
    desk.log.records.pop((WEBHOOK_DELIVERY.name, 0), None)
    async with working(desk):
        await eventually(lambda: len(desk.log.of(WEBHOOK_DELIVERY)) == 2, 5)
        records = [read.record for read in desk.log.of(WEBHOOK_DELIVERY)]
        assert {type(record) for record in records} == {WebhookDelivery, WebhookState}
