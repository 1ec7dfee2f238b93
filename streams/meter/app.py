"""Wires the meter: usage in, tables, and amounts out to where they are billed."""

from __future__ import annotations

import asyncio
import random
from typing import cast

import structlog
from mode import Service

from schemas.records import MeterSend
from schemas.topics import ACCOUNT, USAGE_RECORDED
from streams.adapters.meter_sink import open_sink
from streams.background import Tasks
from streams.domain.billing.prices.book import PriceBookError
from streams.domain.clock import SystemClock
from streams.kafka.reader import TopicReader
from streams.kafka.role import Role
from streams.meter.books import Books
from streams.meter.counting import Counting
from streams.meter.customers import Customers
from streams.meter.desk import Desk
from streams.meter.metrics import OpenSends
from streams.meter.pace import Pacer
from streams.meter.ports import Rows
from streams.meter.sender import Around, Lane, Sender
from streams.ports.meter_sink import MeterSink
from streams.prices import Prices, load_prices
from streams.settings import Settings

log = structlog.get_logger(__name__)

EXIT_USAGE = 2
_TICK_S = 0.2
_CLEAN_UP_S = 3600.0
#: Calls at once, over all tenants.
_CALLS_AT_ONCE = 32


class Meter(Service):
    """The role's parts, and what happens to its partitions."""

    def __init__(self, role: Role, sink: MeterSink, prices: Prices) -> None:
        super().__init__()
        settings = role.settings
        self._role = role
        self._sink = sink
        self._clock = SystemClock()
        self._books = Books(
            cast("Rows", role.table("chunks", USAGE_RECORDED)),
            cast("Rows", role.table("sends", USAGE_RECORDED)),
        )
        desk = Desk(self._books, role.producer, role.fence, self._clock, self._flush, self._queue)
        self._counting = Counting(
            self._books, desk, role.fence, role.reject, self._clock, role.metrics
        )
        self._pacer = Pacer(settings.meter_calls_per_s, self._clock)
        self._customers = Customers(
            TopicReader(settings, [ACCOUNT], metrics=role.metrics), self._mapped
        )
        self._around = Around(
            books=self._books,
            sink=sink,
            prices=prices.current,
            customer_of=self._customers.of,
            publisher=role.producer,
            guard=role.fence,
            flush=self._flush,
            clock=self._clock,
            pacer=self._pacer,
            metrics=role.metrics,
            window_s=settings.meter_window_s,
            random=random.random,
        )
        self._gauges = OpenSends(self._books, self._clock, role.metrics)
        self._following = Tasks(role.crash)
        self._working = Tasks(role.crash)
        self._sender: Sender | None = None
        role.consume(USAGE_RECORDED, self._counting.consume)
        role.add_service(self)
        role.on_assigned(self._assigned)
        role.on_revoked(self._revoked)
        role.on_stopping(self._stopping)

    async def on_start(self) -> None:
        """Begins to follow who pays. Raises KafkaBaseError."""
        await self._customers.start()
        self._following.start(self._customers.work())
        self._following.start(self._counting.work())

    async def on_stop(self) -> None:
        """Ends everything."""
        await self._stopping()
        await self._following.stop(0.0)
        await self._customers.stop()
        await self._sink.close()

    async def _assigned(self, assignment: dict[str, set[int]]) -> None:
        await self._stopping()
        held = assignment.get(USAGE_RECORDED.name, set())
        partitions = await self._role.producer.partitions(USAGE_RECORDED)
        self._books.load(held, partitions, self._clock.now_ms())
        self._pacer.take_share(len(held), partitions)
        if held:
            self._sender = Sender(self._around)
            self._working.start(self._work(self._sender))
            self._working.start(self._clean_up())

    async def _revoked(self, _revoked: dict[str, set[int]]) -> None:
        await self._stopping()
        self._books.clear()

    async def _stopping(self) -> None:
        # A call that is cut off is made again, by whoever has its partition then.
        self._sender = None
        await self._working.stop(0.0)

    async def _flush(self) -> None:
        await self._role.app.producer.flush()

    async def _mapped(self, tenants: frozenset[str]) -> None:
        if self._sender is not None:
            await self._sender.review(tenants)

    def _queue(self, send: MeterSend) -> None:
        # Without a sender the partitions are given up; whoever has them next finds its row.
        if self._sender is not None:
            self._sender.enqueue(send)

    async def _work(self, sender: Sender) -> None:
        room = asyncio.Semaphore(_CALLS_AT_ONCE)
        await sender.tell_untold()
        while True:
            await sender.close_windows()
            await sender.review_if_due()
            for lane in sender.due_lanes():
                await room.acquire()
                lane.busy = True
                self._working.start(self._drain(sender, lane, room))
            self._gauges.update()
            await asyncio.sleep(_TICK_S)

    async def _drain(self, sender: Sender, lane: Lane, room: asyncio.Semaphore) -> None:
        try:
            await sender.drain(lane)
        finally:
            room.release()

    async def _clean_up(self) -> None:
        while True:
            await asyncio.sleep(_CLEAN_UP_S)
            await self._books.delete_old(self._clock.now_ms())


def main(settings: Settings) -> int:
    """Runs the role until it is told to stop, and returns its exit code."""
    role = Role("meter", settings, tables=True)
    try:
        prices = load_prices(settings, metrics=role.metrics)
    except PriceBookError as error:
        log.critical(str(error), action="settings_wrong")
        return EXIT_USAGE
    key = settings.stripe_key
    sink = open_sink(
        None if key is None else key.get_secret_value(), settings.stripe_api_base, settings.data_dir
    )
    Meter(role, sink, prices)
    return role.run()
