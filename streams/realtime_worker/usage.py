"""Puts the usage of ended requests on usage.recorded, once a second.

What the broker does not take is sent again, with the same numbers, so that it counts once. A
worker that is killed takes the usage of its last second with it, in the tenants' favour.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from schemas.records import RealtimeRequest, UsageRecorded
from streams.domain.billing.meter.realtime import RealtimeUsage
from streams.domain.clock import Clock
from streams.domain.outcome.streamed import Used
from streams.kafka.errors import KafkaBaseError, RecordTooLarge

log = structlog.get_logger(__name__)

PERIOD_S = 1.0

#: Sends one record to its tenant's partition.
Send = Callable[[UsageRecorded], Awaitable[object]]


class UsageReporter:
    """What this worker's requests used."""

    def __init__(self, process: str, send: Send, clock: Clock) -> None:
        self._usage = RealtimeUsage(process)
        self._send = send
        self._clock = clock
        self._unsent: deque[UsageRecorded] = deque()
        self._one_at_a_time = asyncio.Lock()

    def add(self, request: RealtimeRequest, used: Used) -> None:
        """A request was answered."""
        now_ms = self._clock.now_ms()
        self._usage.add(request.tenant, request.endpoint, request.model, used, now_ms)

    async def run(self) -> None:
        """Reports for ever."""
        while True:
            await asyncio.sleep(PERIOD_S)
            await self.report()

    async def report(self) -> None:
        """Sends what there is; what fails stays for a later time, behind the others."""
        async with self._one_at_a_time:
            self._unsent += self._usage.take(self._clock.now_ms())
            while self._unsent:
                try:
                    await self._send(self._unsent[0])
                except RecordTooLarge:
                    self._unsent.popleft()
                    log.error("Usage was too large to be written.", action="usage_lost", records=1)
                except KafkaBaseError as error:
                    self._unsent.rotate(-1)
                    log.warning(
                        "Usage could not be written; it is sent again.",
                        action="usage_not_sent",
                        error=type(error).__name__,
                    )
                    return
                else:
                    self._unsent.popleft()

    async def stop(self, budget_s: float) -> None:
        """Sends the rest, as far as that is possible in this time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(budget_s):
                await self.report()
        if self._unsent:
            log.error("Usage was lost.", action="usage_lost", records=len(self._unsent))
