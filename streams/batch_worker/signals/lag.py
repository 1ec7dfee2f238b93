"""Tells the gates what waits in realtime.request: requests that no realtime-worker has taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from streams.kafka.errors import KafkaBaseError

log = structlog.get_logger(__name__)

PERIOD_S = 1.0
#: Less than a period: a question that hangs must not pile up others.
TIMEOUT_S = 0.8
#: A fresh cluster needs some seconds until it knows a group.
_FAILURES_TO_TELL = 5


class Offsets(Protocol):
    """How far a topic goes, and how far a group has come."""

    async def ends(self) -> Mapping[int, int]:
        """The next offset of each partition. Raises KafkaBaseError."""
        ...

    async def committed(self) -> Mapping[int, int]:
        """The group's, or the first that is kept where that is later. Raises KafkaBaseError."""
        ...


class LagReader:
    """The lag of one group, each second.

    A request that was read just now is not committed yet, and does not wait. So only those count
    that were there a period ago.
    """

    def __init__(self, offsets: Offsets, hear: Callable[[int], None]) -> None:
        self._offsets = offsets
        self._hear = hear
        self._ends: Mapping[int, int] = {}
        self._failures = 0

    async def run(self) -> None:
        """Reads until it is cancelled."""
        while True:
            await asyncio.gather(self.step(), asyncio.sleep(PERIOD_S))

    async def step(self) -> None:
        """Reads once. What can't be had in time is left out."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                committed = await self._offsets.committed()
                ends = await self._offsets.ends()
        except (KafkaBaseError, TimeoutError) as error:
            self._failures += 1
            if self._failures == _FAILURES_TO_TELL:
                log.warning(
                    "Could not read how many real-time requests wait.",
                    action="lag_not_read",
                    error=type(error).__name__,
                )
            return
        self._failures = 0
        before, self._ends = self._ends, ends
        self._hear(sum(max(0, end - committed.get(p, end)) for p, end in before.items()))
