"""The meter's memory: the tabs of batches and the sends that are open, for the partitions held.

The tables hold the same as rows: `chunks` what was used, `sends` what is or was being billed. The
difference of their sums is what is not billed yet, so the two need not be written together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import cast

from schemas.partitions import partition_for
from schemas.records import MeterChunkRow, MeterSend, SendState, UsageRecorded
from streams.domain.billing.meter import ledger as usage
from streams.domain.billing.meter.decisions import onto
from streams.domain.billing.meter.ledger import LEDGER_KEPT_MS, Placed, UsageLedger, metered_of
from streams.domain.billing.meter.send import is_open, minute_of
from streams.domain.billing.meter.tab import Tab
from streams.domain.chunk import chunk_key
from streams.meter.ports import Cause, MeterRow, Rows

#: Ledgers kept decoded: usage of a batch comes in many records for the same few chunks.
_LEDGERS_KEPT = 2000
#: Rows looked at between two turns of the event loop.
_ROWS_AT_ONCE = 200

Key = tuple[str, str]


class Books:
    """All state of this process, and the only writer of its tables."""

    def __init__(self, chunks: Rows, sends: Rows) -> None:
        self._chunks = chunks
        self._sends = sends
        self.partitions = 1
        self.held: frozenset[int] = frozenset()
        self._ledgers: dict[str, UsageLedger] = {}
        #: By tenant and batch.
        self.tabs: dict[Key, Tab] = {}
        #: Tabs with an open window.
        self.unbilled: set[Key] = set()
        #: Sends of which something may still become, by identifier.
        self.open: dict[str, MeterSend] = {}
        #: Held by whoever changes a send that is in no lane.
        self.deciding = asyncio.Lock()

    def load(self, held: Iterable[int], partitions: int, now_ms: int) -> None:
        """Starts over with what the tables hold of these partitions, of so many in all."""
        self.clear()
        self.partitions = partitions
        self.held = frozenset(held)
        for _, row in self._chunks.items():  # noqa: PERF102 - a table, not a dict
            if self._is_mine(row):
                ledger = usage.from_row(cast("MeterChunkRow", row))
                self._tab(ledger).gain(ledger.sums, ledger.last_at_ms, now_ms)
        for _, row in self._sends.items():  # noqa: PERF102 - as above
            if self._is_mine(row):
                self._note(cast("MeterSend", row), now_ms, is_new=True)
        self.unbilled = {key for key, tab in self.tabs.items() if tab.opened_at_ms is not None}

    def clear(self) -> None:
        """Forgets everything: the partitions are another's."""
        self.held = frozenset()
        self._ledgers.clear()
        self.tabs.clear()
        self.unbilled.clear()
        self.open.clear()

    def partition_of(self, tenant: str) -> int:
        """The partition of usage.recorded that holds the tenant's usage."""
        return partition_for(tenant, self.partitions)

    def count(self, records: Iterable[Placed], now_ms: int) -> dict[str, int]:
        """Folds usage in, each line once, and writes the chunks that changed.

        Returns the lines that were new, by their flag.
        """
        flags = dict[str, int]()
        for record, offset in usage.merged(records):
            for flag, count in self._count(record, offset, now_ms).items():
                flags[flag] = flags.get(flag, 0) + count
        return flags

    def _count(self, record: UsageRecorded, offset: int, now_ms: int) -> dict[str, int]:
        metered, flags = metered_of(record), dict[str, int]()
        for chunk, lines in usage.by_chunk(record.lines).items():
            key = _chunk_key(metered.key, chunk)
            before = self._ledger(key) or UsageLedger(metered, chunk)
            found = usage.accept(before, record, lines, offset)
            if found is None:
                continue
            after = self._ledgers[key] = found.ledger
            self._chunks.put(key, usage.to_row(after), Cause(self.partition_of(record.tenant), 0))
            tab = self._tab(after)
            tab.gain(found.gained, record.at_ms, now_ms)
            self._mark(tab)
            for flag, count in found.flags.items():
                flags[flag] = flags.get(flag, 0) + count
        return flags

    def write(self, send: MeterSend, now_ms: int) -> None:
        """Writes a send, new or changed, and remembers it as long as it is open.

        Whoever made it may have awaited since: a command that was refused meanwhile stays refused.
        """
        known = self.send(send.identifier)
        if known is not None:
            send = onto(known, send)
        self._sends.put(send.identifier, send, Cause(self.partition_of(send.tenant), 0))
        self._note(send, now_ms, is_new=known is None)

    def send(self, identifier: str) -> MeterSend | None:
        """The send as it is now; None if there is none."""
        return cast("MeterSend | None", self._sends.get(identifier))

    def due(self, window_s: float, now_ms: int) -> list[Tab]:
        """Tabs whose window closes now."""
        found = []
        for key in self.unbilled:
            at_ms = self.tabs[key].due_at_ms(window_s)
            if at_ms is not None and at_ms <= now_ms:
                found.append(self.tabs[key])
        return found

    async def confirmed_beside(self, send: MeterSend) -> int:
        """Tokens of the other sends of the same customer, meter and minute that are there.

        What is to be taken back is: its lane doesn't ask while that is in doubt.
        """
        total = 0
        async for row in self._walk(self._sends):
            other = cast("MeterSend", row)
            if (
                other.state in (SendState.CONFIRMED, SendState.CANCELLING)
                and other.identifier != send.identifier
                and other.customer == send.customer
                and other.event_name == send.event_name
                and minute_of(other.at_ms) == minute_of(send.at_ms)
            ):
                total += other.tokens
        return total

    async def delete_old(self, now_ms: int) -> None:
        """Deletes the rows of batches that no replay can touch any more and that are all billed."""
        waiting = {(send.tenant, send.batch_id) for send in self.open.values()}
        old = {
            key
            for key, tab in self.tabs.items()
            if tab.last_at_ms + LEDGER_KEPT_MS < now_ms
            and key not in waiting
            and key not in self.unbilled
        }
        if not old:
            return
        # Sends last: without its sends a batch would be billed again.
        async for row in self._walk(self._chunks):
            chunk = cast("MeterChunkRow", row)
            if (chunk.tenant, chunk.batch_id) in old:
                cause = Cause(self.partition_of(chunk.tenant), chunk.watermark)
                row_key = _chunk_key((chunk.tenant, chunk.batch_id), chunk.chunk)
                self._ledgers.pop(row_key, None)
                self._chunks.delete(row_key, cause)
        async for row in self._walk(self._sends):
            send = cast("MeterSend", row)
            if (send.tenant, send.batch_id) in old:
                cause = Cause(self.partition_of(send.tenant), send.watermark)
                self._sends.delete(send.identifier, cause)
        for key in old:
            self.tabs.pop(key, None)

    async def _walk(self, rows: Rows) -> AsyncIterator[MeterRow]:
        for number, (_, row) in enumerate(rows.items()):
            if number % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            if self._is_mine(row):
                yield row

    def _is_mine(self, row: MeterRow) -> bool:
        return self.partition_of(row.tenant) in self.held

    def _ledger(self, key: str) -> UsageLedger | None:
        known = self._ledgers.get(key)
        if known is not None:
            return known
        if len(self._ledgers) >= _LEDGERS_KEPT:
            del self._ledgers[next(iter(self._ledgers))]
        row = cast("MeterChunkRow | None", self._chunks.get(key))
        return None if row is None else usage.from_row(row)

    def _tab(self, ledger: UsageLedger) -> Tab:
        key = ledger.metered.key
        tab = self.tabs.get(key)
        if tab is None:
            tab = self.tabs[key] = Tab(ledger.metered)
        return tab

    def _note(self, send: MeterSend, now_ms: int, *, is_new: bool) -> None:
        if is_open(send):
            self.open[send.identifier] = send
        else:
            self.open.pop(send.identifier, None)
        if is_new:
            key = (send.tenant, send.batch_id)
            tab = self.tabs.get(key)
            if tab is None:
                tab = self.tabs[key] = Tab(_metered(send))
            tab.bill(send, now_ms)
            self._mark(tab)

    def _mark(self, tab: Tab) -> None:
        if tab.opened_at_ms is None:
            self.unbilled.discard(tab.metered.key)
        else:
            self.unbilled.add(tab.metered.key)


def _chunk_key(key: Key, chunk: int) -> str:
    return chunk_key("/".join(key), chunk)


def _metered(send: MeterSend) -> usage.Metered:
    return usage.Metered(
        send.tenant,
        send.batch_id,
        send.endpoint,
        send.completion_window,
        send.batch_created_at_ms,
    )
