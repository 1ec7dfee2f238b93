"""Work on usage.recorded: every accepted line is counted once, and operators are obeyed.

fold ─► write the chunks ─► ack. Nothing is sent here, so nothing can be sent twice; the commit
follows a flush of the tables.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

from schemas.metrics import USAGE_LINES, Metrics
from schemas.records import BillingCommand, UsageRecorded
from streams.domain.clock import Clock
from streams.kafka.failpoint import reach
from streams.kafka.role import Consumed
from streams.meter.books import Books
from streams.meter.desk import Desk
from streams.meter.ports import Guard

Reject = Callable[[Consumed, str], Awaitable[None]]


class Counting:
    """Folds usage into the books."""

    def __init__(
        self,
        books: Books,
        desk: Desk,
        guard: Guard,
        reject: Reject,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._books = books
        self._desk = desk
        self._guard = guard
        self._reject = reject
        self._clock = clock
        self._lines = metrics.counter(USAGE_LINES)

    async def consume(self, records: AsyncIterator[Consumed]) -> None:
        """Counts for ever."""
        async for consumed in records:
            await self.count(consumed)

    async def count(self, consumed: Consumed) -> None:
        """One record. Does nothing if its partition was revoked meanwhile."""
        record = cast("UsageRecorded | BillingCommand", consumed.record)
        if self._books.partition_of(record.tenant) != consumed.partition:
            # Its rows would be lost at the next recovery.
            await self._reject(consumed, "this is not the partition of its tenant")
            return
        if isinstance(record, BillingCommand):
            if await self._desk.obey(record, consumed.offset, lambda: consumed.live):
                consumed.ack()
            return
        await self._guard.wait()
        if not consumed.live:
            return
        flags = self._books.count(record, consumed.offset, self._clock.now_ms())
        for flag, lines in flags.items():
            self._lines.labels(flag or "ok").inc(lines)
        reach("meter.counted")
        consumed.ack()
        reach("meter.acked")
