"""Publishes batches on batch.status: at once when the status changes, else once a second.

Compaction keeps the last record of a batch, so an older snapshot must never come after a newer
one: everything is published under one lock, and never with a lower revision than before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from schemas.records import BatchSnapshot
from schemas.topics import BATCH_STATUS
from streams.controller.books import Books
from streams.controller.ports import Guard, Sender
from streams.domain.batch.row import snapshot_of

#: Counts of a running batch are published this often.
PERIOD_S = 1.0
#: Snapshots sent together.
_AT_ONCE = 500


class Snapshots:
    """What callers see of this process's batches."""

    def __init__(self, books: Books, sender: Sender, guard: Guard) -> None:
        self._books = books
        self._sender = sender
        self._guard = guard
        self._lock = asyncio.Lock()
        self._dirty: dict[str, None] = {}
        self._published: dict[str, int] = {}

    def reset(self) -> None:
        """Starts over with the books: what was last published is not known."""
        self._published.clear()
        self._dirty = dict.fromkeys(self._books.live)

    def touch(self, batch_id: str) -> None:
        """The batch's counts changed."""
        self._dirty[batch_id] = None

    async def publish(self, snapshots: Iterable[BatchSnapshot]) -> None:
        """Publishes these now and waits for the broker."""
        async with self._lock:
            await self._send(list(snapshots))

    async def flush(self) -> None:
        """Publishes what changed since the last time."""
        async with self._lock:
            while self._dirty:
                batch_ids = list(self._dirty)[:_AT_ONCE]
                for batch_id in batch_ids:
                    del self._dirty[batch_id]
                live = self._books.live
                await self._send([snapshot_of(live[b]) for b in batch_ids if b in live])

    async def work(self) -> None:
        """Flushes once a period, for ever."""
        while True:
            await asyncio.sleep(PERIOD_S)
            if self._dirty:
                await self._guard.wait()
                await self.flush()

    async def _send(self, snapshots: list[BatchSnapshot]) -> None:
        newer = [s for s in snapshots if s.revision >= self._published.get(s.batch_id, -1)]
        for snapshot in newer:
            self._published[snapshot.batch_id] = snapshot.revision
            self._dirty.pop(snapshot.batch_id, None)
        await asyncio.gather(*(self._sender.send(BATCH_STATUS, s.batch_id, s) for s in newer))

    def forget(self, batch_id: str) -> None:
        """The batch has ended and was published for the last time."""
        self._published.pop(batch_id, None)
        self._dirty.pop(batch_id, None)
