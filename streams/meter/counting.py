"""Work on usage.recorded: every accepted line is counted once, and operators are obeyed.

fold up to GROUP_RECORDS ─► write each chunk once ─► ack. Nothing is sent here, so nothing can be
sent twice; the commit follows a flush of the tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import cast

from schemas.metrics import USAGE_LINES, Metrics
from schemas.records import BillingCommand, UsageRecorded
from streams.domain.clock import Clock
from streams.kafka.failpoint import reach
from streams.kafka.queued import Queued
from streams.kafka.role import Consumed
from streams.meter.books import Books
from streams.meter.desk import Desk
from streams.meter.ports import Guard

Reject = Callable[[Consumed, str], Awaitable[None]]

#: Records that are counted together, of 25 lines or fewer; with 2000 in each they take 250 MB.
GROUP_RECORDS = 500
#: How long usage waits for company. A chunk's row costs as much as reading three records does, and
#: where lines are slow each comes in a record of its own.
COMPANY_S = 0.25


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
        self._queued = Queued(GROUP_RECORDS)

    async def consume(self, records: AsyncIterator[Consumed]) -> None:
        """Takes records as they come."""
        await self._queued.fill(records)

    async def work(self) -> None:
        """Counts what was taken, for ever."""
        while True:
            taken = await self._queued.take(GROUP_RECORDS)
            await self.step(taken)
            if len(taken) < GROUP_RECORDS:
                await asyncio.sleep(COMPANY_S)

    async def step(self, taken: Sequence[Consumed]) -> None:
        """Some records, in order. Does nothing for those whose partition was revoked meanwhile."""
        usage: list[Consumed] = []
        for consumed in taken:
            record = cast("UsageRecorded | BillingCommand", consumed.record)
            if self._books.partition_of(record.tenant) != consumed.partition:
                # Its rows would be lost at the next recovery.
                await self._reject(consumed, "this is not the partition of its tenant")
            elif isinstance(record, UsageRecorded):
                usage.append(consumed)
            elif await self._desk.obey(record, consumed.offset, partial(_live, consumed)):
                consumed.ack()
        await self._guard.wait()
        self._count([consumed for consumed in usage if consumed.live])

    def _count(self, usage: Sequence[Consumed]) -> None:
        records = [(cast("UsageRecorded", consumed.record), consumed.offset) for consumed in usage]
        flags = self._books.count(records, self._clock.now_ms())
        for flag, lines in flags.items():
            self._lines.labels(flag or "ok").inc(lines)
        if usage:
            reach("meter.counted")
        for consumed in usage:
            consumed.ack()
        reach("meter.acked")


def _live(consumed: Consumed) -> bool:
    return consumed.live
