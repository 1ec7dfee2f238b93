"""A meter sink in memory with Stripe's rules, for tests; its clock, limits and faults are yours.

| rule | here |
|---|---|
| an identifier is known for 24 hours | exactly that long: the least that Stripe promises |
| events are at most 35 days old, at most 5 minutes ahead | refused otherwise |
| one call at a time for a customer and meter; so many a second | 429 |
| meters must exist and not be archived; customers must exist | refused, where they are listed |
| faults | 429, 500, a time-out before or after accepting, each as often as you say |
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from streams.domain.clock import Clock
from streams.ports.meter_sink import EventRefused, MeterEvent, RefusalCode, SinkUnavailable

_DAY_MS = 86_400_000
IDENTIFIER_KNOWN_MS = _DAY_MS
OLDEST_MS = 35 * _DAY_MS
AHEAD_MS = 5 * 60_000
#: Digits of a value that Stripe takes.
_MOST_DIGITS = 15


class Fault(StrEnum):
    """What may go wrong with one call."""

    NONE = "none"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    #: It did what it was asked to, and then the answer was late or got lost.
    TIMEOUT_AFTER = "timeout_after"
    ANSWER_LOST = "answer_lost"


def _no_fault() -> Fault:
    return Fault.NONE


@dataclass
class FakeMeterSink:
    """Stripe's meters. fault: asked at each call. meters, customers: None means any exist."""

    clock: Clock
    fault: Callable[[], Fault] = _no_fault
    needs_customer: bool = True
    sums_lag_s: float = 0.0
    meters: set[str] | None = None
    archived: set[str] = field(default_factory=set)
    customers: set[str] | None = None
    #: Everything that was taken, in order.
    events: list[MeterEvent] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    #: Times of all calls, Unix milliseconds.
    calls: list[int] = field(default_factory=list)
    #: Calls that broke the rule of one at a time.
    overlaps: int = 0
    _known: dict[str, int] = field(default_factory=dict)
    _running: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def send(self, event: MeterEvent) -> None:
        """Takes the event, unless it is known or breaks a rule."""
        self.calls.append(self.clock.now_ms())
        place = (event.customer, event.event_name)
        if self._running[place]:
            self.overlaps += 1
            raise SinkUnavailable("rate_limited")
        self._running[place] += 1
        try:
            fault = self._before()
            await asyncio.sleep(0)
            self._take(event)
            _after(fault)
        finally:
            self._running[place] -= 1

    async def total(self, customer: str, event_name: str, start_ms: int, end_ms: int) -> int:
        """The sum that Stripe's summaries would show."""
        if start_ms % 60_000 or end_ms % 60_000:
            raise EventRefused(RefusalCode.INVALID_REQUEST)
        fault = self._before()
        self._judge_meter(event_name)
        _after(fault)
        return sum(
            event.tokens
            for event in self._valid()
            if (event.customer, event.event_name) == (customer, event_name)
            and start_ms <= event.at_ms < end_ms
        )

    async def cancel(self, identifier: str, event_name: str) -> None:
        """Takes an event back, within 24 hours of its coming."""
        fault = self._before()
        known_ms = self._known.get(identifier)
        if known_ms is None or self.clock.now_ms() - known_ms >= IDENTIFIER_KNOWN_MS:
            raise EventRefused(RefusalCode.INVALID_REQUEST)
        self.cancelled.add(identifier)
        _after(fault)

    async def close(self) -> None:
        """Nothing to close."""

    def forget(self) -> None:
        """Knows no identifier any more."""
        self._known.clear()

    def totals(self) -> dict[tuple[str, str], int]:
        """All tokens by customer and event name."""
        found: Counter[tuple[str, str]] = Counter()
        for event in self._valid():
            found[event.customer, event.event_name] += event.tokens
        return dict(found)

    def _valid(self) -> Iterable[MeterEvent]:
        return (event for event in self.events if event.identifier not in self.cancelled)

    def _before(self) -> Fault:
        fault = self.fault()
        if fault is Fault.RATE_LIMITED:
            raise SinkUnavailable("rate_limited", 2.0)
        if fault in (Fault.SERVER_ERROR, Fault.TIMEOUT):
            raise SinkUnavailable(fault.value)
        return fault

    def _take(self, event: MeterEvent) -> None:
        now_ms = self.clock.now_ms()
        known_ms = self._known.get(event.identifier)
        if known_ms is not None and now_ms - known_ms < IDENTIFIER_KNOWN_MS:
            return
        self._judge(event, now_ms)
        self._known[event.identifier] = now_ms
        self.events.append(event)

    def _judge(self, event: MeterEvent, now_ms: int) -> None:
        self._judge_meter(event.event_name)
        if max(len(event.identifier), len(event.event_name)) > 100:
            raise EventRefused(RefusalCode.INVALID_REQUEST)
        if not event.customer:
            raise EventRefused(RefusalCode.NO_CUSTOMER_DEFINED)
        if self.customers is not None and event.customer not in self.customers:
            raise EventRefused(RefusalCode.CUSTOMER_NOT_FOUND)
        if event.tokens < 0:
            raise EventRefused(RefusalCode.INVALID_VALUE)
        if len(str(event.tokens)) > _MOST_DIGITS:
            raise EventRefused(RefusalCode.VALUE_TOO_MANY_DIGITS)
        if event.at_ms > now_ms + AHEAD_MS:
            raise EventRefused(RefusalCode.TIMESTAMP_IN_FUTURE)
        if event.at_ms < now_ms - OLDEST_MS:
            raise EventRefused(RefusalCode.TIMESTAMP_TOO_OLD)

    def _judge_meter(self, event_name: str) -> None:
        if event_name in self.archived:
            raise EventRefused(RefusalCode.ARCHIVED_METER)
        if self.meters is not None and event_name not in self.meters:
            raise EventRefused(RefusalCode.NO_METER)


def _after(fault: Fault) -> None:
    if fault in (Fault.TIMEOUT_AFTER, Fault.ANSWER_LOST):
        raise SinkUnavailable(fault.value)
