"""Ends completion windows: writes BatchWindowEnded onto batch.event when a batch's time is over.

The clock is this process's, but what follows is folded from the log, so a replay ends the same.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable

from schemas.records import BatchWindowEnded
from schemas.topics import BATCH_EVENT
from streams.controller.books import Books
from streams.controller.ports import Sender
from streams.domain.batch.state import Batch, Cancelling, Ended
from streams.domain.clock import Clock

#: The wall clock may jump, so it is looked at this often even if no window is near its end.
_LOOK_AGAIN_S = 5.0


class Windows:
    """The windows of one assignment's batches."""

    def __init__(self, books: Books, sender: Sender, clock: Clock) -> None:
        self._books = books
        self._sender = sender
        self._clock = clock
        self._ends: list[tuple[int, str]] = []
        self._changed = asyncio.Event()

    def watch(self, batches: Iterable[Batch]) -> None:
        """Will end these batches' windows, at the ends that they have now."""
        for batch in batches:
            if not isinstance(batch, Cancelling | Ended):
                entry = (batch.terms.expires_at_ms, batch.request.batch_id)
                heapq.heappush(self._ends, entry)
                self._changed.set()

    async def work(self) -> None:
        """Waits for the next end, for ever."""
        while True:
            self._changed.clear()
            now_ms = self._clock.now_ms()
            while self._ends and self._ends[0][0] <= now_ms:
                await self._end(heapq.heappop(self._ends)[1], now_ms)
            pause_s = (self._ends[0][0] - now_ms) / 1000 if self._ends else _LOOK_AGAIN_S
            try:
                async with asyncio.timeout(min(max(pause_s, 0.001), _LOOK_AGAIN_S)):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _end(self, batch_id: str, now_ms: int) -> None:
        batch = self._books.live.get(batch_id)
        # A window that was moved to a later end stands here with that one, too.
        if batch is None or isinstance(batch, Cancelling) or batch.terms.expires_at_ms > now_ms:
            return
        event = BatchWindowEnded(batch_id=batch_id, tenant=batch.request.tenant, at_ms=now_ms)
        await self._sender.send(BATCH_EVENT, batch_id, event)
