"""Sends what was counted to where it is billed.

    tab ─window closes─► pending ─► the tenant's lane ─► sink

Each tenant has a lane, in which one send at a time goes out, oldest first: so there is never more
than one call for a customer, and the order is kept. The steps of a send:

1. its row is written as pending, with all that is sent but customer and meter;
2. these are fixed, the row is written as sent, and the tables are flushed;
3. the sink is called;
4. the end is published on meter.send, then written.

A crash before 2 starts over with the same amounts. After 2 the same call is made again, which the
sink knows by its identifier, or the sink's sums are asked when that may be forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from schemas.metrics import METER_CALLS, Metrics
from schemas.records import BillingDecision, MeterSend, SendState
from schemas.topics import METER_SEND
from streams.domain.billing.meter import decisions as decide
from streams.domain.billing.meter import send as rules
from streams.domain.billing.meter.send import Next, Target
from streams.domain.billing.prices.book import PriceBook
from streams.domain.billing.prices.meter_names import meter_of
from streams.domain.billing.tokens import TokenType
from streams.domain.clock import Clock
from streams.kafka.failpoint import reach
from streams.meter.books import Books
from streams.meter.desk import tell
from streams.meter.pace import Pacer, pause_s
from streams.meter.ports import Guard, Publisher
from streams.ports.meter_sink import EventRefused, MeterEvent, MeterSink, SinkUnavailable

log = structlog.get_logger(__name__)

#: What is parked for something that may come by itself is tried again this often.
_REVIEW_S = 600.0
#: How long a lane waits while another tenant's call for the same customer is out.
_CUSTOMER_BUSY_MS = 50
#: What goes first after a restart.
_URGENCY = {SendState.CANCELLING: 0, SendState.SENT: 1}
Sleep = Callable[[float], Awaitable[None]]
T = TypeVar("T")


class _Later(Exception):  # noqa: N818 - no error: the lane goes on later
    """The sink could not be asked; the lane says when it goes on."""


@dataclass(frozen=True, kw_only=True)
class Around:
    """What the sender works with.

    customer_of: the sink's customer of a tenant, None if none is set. prices: the book in force.
    flush: returns when the tables' writes are durable. random: numbers in [0, 1).
    """

    books: Books
    sink: MeterSink
    prices: Callable[[], PriceBook | None]
    customer_of: Callable[[str], str | None]
    publisher: Publisher
    guard: Guard
    flush: Callable[[], Awaitable[None]]
    clock: Clock
    pacer: Pacer
    metrics: Metrics
    window_s: float
    random: Callable[[], float]
    sleep: Sleep = asyncio.sleep


@dataclass(slots=True)
class Lane:
    """A tenant's sends, oldest first; due: when the first may be tried, Unix milliseconds."""

    tenant: str
    queue: deque[str] = field(default_factory=deque)
    due_ms: int = 0
    failures: int = 0
    busy: bool = False


class Sender:
    """One assignment's. Made after the books are loaded, dropped when partitions are given up."""

    def __init__(self, around: Around) -> None:
        self._around = around
        self._books = around.books
        self._lanes: dict[str, Lane] = {}
        self._calling: set[str] = set()
        self._calls = around.metrics.counter(METER_CALLS)
        self._reviewed_ms = around.clock.now_ms()
        waiting = [s for s in self._books.open.values() if s.state is not SendState.PARKED]
        # What may have been taken back, then what may have arrived, goes before what follows it.
        for send in sorted(waiting, key=lambda s: (_URGENCY.get(s.state, 2), *_order(s))):
            self.enqueue(send)
        # Of what waits from the start no lane tells, and a crash may have come before it was told.
        self._untold = [s for s in self._books.open.values() if _waits_from_the_start(s)]

    # -- windows ---------------------------------------------------------------------------

    async def close_windows(self) -> None:
        """Writes the sends of windows that are over, and queues them."""
        around, books = self._around, self._books
        now_ms = around.clock.now_ms()
        found = [
            send
            for tab in books.due(around.window_s, now_ms)
            for send in tab.close(now_ms)
        ]  # fmt: skip
        if not found:
            return
        await around.guard.wait()
        for send in sorted(found, key=_order):
            books.write(send, now_ms)
            reach("meter.pending")
            if send.state is SendState.PENDING:
                self.enqueue(send)
        await asyncio.gather(*(self._publish(send) for send in found))
        reach("meter.pending_published")

    async def review(self, tenants: frozenset[str] | None = None) -> None:
        """Tries parked sends again, of these tenants or of all."""
        now_ms = self._around.clock.now_ms()
        for known in sorted(self._books.open.values(), key=_order):
            if tenants is not None and known.tenant not in tenants:
                continue
            async with self._books.deciding:
                await self._around.guard.wait()
                # Two reviews may run, and a lane beside them: what counts is what is so now.
                send = self._books.open.get(known.identifier)
                if send is None or not rules.waits_by_itself(send):
                    continue
                if rules.next_of(send, now_ms) is Next.PARK:
                    await self._end(rules.park(send, rules.TOO_OLD, now_ms))
                elif not isinstance(self._target(send), str):
                    self._books.write(rules.unpark(send, now_ms), now_ms)
                    self.enqueue(send)

    async def review_if_due(self) -> None:
        """Tries all parked sends again, every ten minutes."""
        now_ms = self._around.clock.now_ms()
        if now_ms - self._reviewed_ms >= _REVIEW_S * 1000:
            self._reviewed_ms = now_ms
            await self.review()

    async def tell_untold(self) -> None:
        """Publishes what may never have been, once after a start."""
        while self._untold:
            known = self._untold.pop()
            async with self._books.deciding:
                await self._around.guard.wait()
                if self._books.send(known.identifier) == known:
                    await self._publish(known)

    # -- lanes -----------------------------------------------------------------------------

    def enqueue(self, send: MeterSend) -> None:
        """Something is to be done with this send, after all before it."""
        self._lane(send.tenant).queue.append(send.identifier)

    def due_lanes(self) -> list[Lane]:
        """Lanes in which something may be sent now, and nobody is at it."""
        now_ms = self._around.clock.now_ms()
        return [x for x in self._lanes.values() if x.queue and not x.busy and x.due_ms <= now_ms]

    async def drain(self, lane: Lane) -> None:
        """Sends what is due in a lane until it is empty or has to wait."""
        lane.busy = True
        try:
            while lane.queue and lane.due_ms <= self._around.clock.now_ms():
                await self.advance(lane)
        finally:
            lane.busy = False
            if not lane.queue:
                self._lanes.pop(lane.tenant, None)

    async def advance(self, lane: Lane) -> None:
        """Does what is next for the first send of a lane."""
        send = self._books.open.get(lane.queue[0])
        now_ms = self._around.clock.now_ms()
        step = Next.NOTHING if send is None else rules.next_of(send, now_ms)
        if send is None or step is Next.NOTHING:
            lane.queue.popleft()
        elif step is Next.PARK:
            await self._end(rules.park(send, rules.TOO_OLD, now_ms), lane)
        elif step is Next.BEGIN:
            await self._begin(send, lane)
        elif step is Next.CALL:
            await self._call(send, lane)
        elif step is Next.CANCEL:
            await self._cancel(send, lane)
        else:
            await self._check(send, lane)

    async def _begin(self, send: MeterSend, lane: Lane) -> None:
        around, now_ms = self._around, self._around.clock.now_ms()
        target = self._target(send)
        if isinstance(target, str):
            await self._end(rules.park(send, target, now_ms), lane)
            return
        await around.guard.wait()
        send = rules.begin(send, target, now_ms)
        self._books.write(send, now_ms)
        reach("meter.sent_written")
        await around.flush()
        reach("meter.sent_durable")
        await self._call(send, lane)

    async def _call(self, send: MeterSend, lane: Lane) -> None:
        # The row is durable as sent: since just now, or since it was recovered.
        around = self._around
        try:
            await self._ask(lane, send, lambda: around.sink.send(_event(send)))
        except _Later:
            return
        except EventRefused as refused:
            await self._refused(send, refused, lane)
            return
        reach("meter.called")
        await self._end(rules.confirm(send, around.clock.now_ms()), lane)

    async def _refused(self, send: MeterSend, refused: EventRefused, lane: Lane) -> None:
        log.error(
            "Usage was refused where it is billed.",
            action="usage_refused",
            identifier=send.identifier,
            reason=refused.code.value,
        )
        ending = rules.park if refused.code.is_fixable else rules.reject
        await self._end(ending(send, refused.code.value, self._around.clock.now_ms()), lane)

    async def _check(self, send: MeterSend, lane: Lane) -> None:
        around = self._around
        try:
            there = await self._look(send, lane)
        except _Later:
            return
        except EventRefused as refused:
            await self._end(rules.park(send, refused.code.value, around.clock.now_ms()), lane)
            return
        now_ms = around.clock.now_ms()
        if there is None:
            await self._end(rules.park(send, rules.UNCLEAR, now_ms), lane)
        elif there:
            await self._end(rules.confirm(send, now_ms), lane)
        elif now_ms - send.at_ms >= rules.TOO_OLD_MS:
            await self._end(rules.park(send, rules.TOO_OLD, now_ms), lane)
        else:
            await around.guard.wait()
            self._books.write(rules.begin_again(send, now_ms), now_ms)
            reach("meter.begun_again")
            await around.flush()

    async def _look(self, send: MeterSend, lane: Lane) -> bool | None:
        """Whether the sink's sum of its minute holds it. Raises _Later, EventRefused."""
        around, start_ms = self._around, rules.minute_of(send.at_ms)
        customer, meter = send.customer or "", send.event_name or ""
        end_ms = start_ms + rules.MINUTE_MS
        total = await self._ask(
            lane, send, lambda: around.sink.total(customer, meter, start_ms, end_ms)
        )
        return rules.arrived(send, await self._books.confirmed_beside(send), total)

    async def _cancel(self, send: MeterSend, lane: Lane) -> None:
        around = self._around
        try:
            refusal = await self._take_back(send, lane)
        except _Later:
            return
        reach("meter.cancelled")
        now_ms = around.clock.now_ms()
        after = decide.kept(send, now_ms) if refusal else decide.taken_back(send, now_ms)
        command = send.command
        made = None if command is None else decide.decision(command, send, refusal, now_ms)
        await self._end(after, lane, made)

    async def _take_back(self, send: MeterSend, lane: Lane) -> str:
        """Why the sink won't; empty if it does. Raises _Later."""
        sink, meter = self._around.sink, send.event_name or ""
        age_s = (self._around.clock.now_ms() - (send.first_sent_at_ms or 0)) / 1000
        try:
            await self._ask(lane, send, lambda: sink.cancel(send.identifier, meter))
        except EventRefused as refused:
            # Perhaps it has done so before, and the answer was lost until it was too late. Its sums
            # tell, once they would hold what it has.
            with contextlib.suppress(EventRefused):
                if age_s >= sink.sums_lag_s and await self._look(send, lane) is False:
                    return ""
            return refused.code.value
        return ""

    async def _ask(self, lane: Lane, send: MeterSend, call: Callable[[], Awaitable[T]]) -> T:
        """Calls the sink: one call at a time for a customer, at our pace. Raises _Later."""
        around, customer = self._around, send.customer or ""
        if customer in self._calling:
            lane.due_ms = around.clock.now_ms() + _CUSTOMER_BUSY_MS
            raise _Later
        self._calling.add(customer)
        try:
            if (wait_s := around.pacer.reserve()) > 0:
                await around.sleep(wait_s)
            await around.guard.wait()
            answer = await call()
        except SinkUnavailable as error:
            self._failed(lane, error)
            raise _Later from error
        except EventRefused:
            self._calls.labels("refused").inc()
            raise
        finally:
            self._calling.discard(customer)
        lane.failures = 0
        self._calls.labels("ok").inc()
        return answer

    def _failed(self, lane: Lane, error: SinkUnavailable) -> None:
        around = self._around
        self._calls.labels(error.reason).inc()
        lane.failures += 1
        wait_s = pause_s(lane.failures, error.retry_after_s, around.random)
        lane.due_ms = around.clock.now_ms() + round(wait_s * 1000)
        log.warning(
            "Usage could not be sent; it will be tried again.",
            action="usage_not_sent",
            reason=error.reason,
            failures=lane.failures,
            wait_s=round(wait_s, 1),
        )

    # -- helpers ---------------------------------------------------------------------------

    async def _end(
        self, send: MeterSend, lane: Lane | None = None, made: BillingDecision | None = None
    ) -> None:
        """Publishes the state that a send has come to, writes it, and takes it off its lane.

        made: what has become of the command that brought it there.
        """
        await self._around.guard.wait()
        await self._publish(send)
        if made is not None:
            await tell(self._around.publisher, made)
        reach("meter.end_published")
        self._books.write(send, self._around.clock.now_ms())
        reach("meter.end_written")
        if lane is not None:
            lane.queue.popleft()

    async def _publish(self, send: MeterSend) -> None:
        await self._around.publisher.send(METER_SEND, send.identifier, send)

    def _target(self, send: MeterSend) -> Target | str:
        """Where the send goes, or what it is to be parked for."""
        around, window = self._around, send.completion_window
        customer = around.customer_of(send.tenant)
        if customer is None and around.sink.needs_customer:
            return rules.NO_CUSTOMER
        book, line = around.prices(), None
        if book is not None:
            line = book.line(send.model, send.endpoint, window, send.batch_created_at_ms)
            if line is None:
                return rules.NO_PRICE
        return Target(customer or send.tenant, meter_of(TokenType(send.token_type), window, line))

    def _lane(self, tenant: str) -> Lane:
        return self._lanes.setdefault(tenant, Lane(tenant))


def _waits_from_the_start(send: MeterSend) -> bool:
    return send.state is SendState.PARKED and send.watermark == 0


def _order(send: MeterSend) -> tuple[int, str]:
    return send.at_ms, send.identifier


def _event(send: MeterSend) -> MeterEvent:
    return MeterEvent(
        identifier=send.identifier,
        event_name=send.event_name or "",
        customer=send.customer or "",
        tokens=send.tokens,
        at_ms=send.at_ms,
        dimensions={"model": send.model, "batch": send.batch_id},
    )
