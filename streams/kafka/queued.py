"""Records between the agent that reads them and the task that works on many of them at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from streams.kafka.role import Consumed


class Queued:
    """A bounded queue that is taken from in groups."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._records: deque[Consumed] = deque()
        self._some = asyncio.Event()
        self._room = asyncio.Event()

    async def fill(self, records: AsyncIterator[Consumed]) -> None:
        """Queues records as they come, as long as there is room."""
        async for consumed in records:
            self._records.append(consumed)
            self._some.set()
            while len(self._records) >= self._limit:
                self._room.clear()
                await self._room.wait()

    async def take(self, most: int) -> list[Consumed]:
        """The next records, at least one, without those whose partition was revoked."""
        while True:
            await self._some.wait()
            found: list[Consumed] = []
            while self._records and len(found) < most:
                consumed = self._records.popleft()
                if consumed.live:
                    found.append(consumed)
            if not self._records:
                self._some.clear()
            self._room.set()
            if found:
                return found
