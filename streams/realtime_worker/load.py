"""Tells gateways and batch-workers how this worker does: on change, and each second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from schemas.records import RealtimeLoad
from streams.kafka.errors import KafkaBaseError
from streams.realtime_worker.worker import Worker

log = structlog.get_logger(__name__)

#: At least so often: gateways take a worker that is silent for three of these for dead.
PERIOD_S = 1.0
#: Changes within this of the last record travel in the next one.
GAP_S = 0.02

Send = Callable[[RealtimeLoad], Awaitable[object]]


class LoadReporter:
    """Publishes a RealtimeLoad on change, at most one each GAP_S, and each PERIOD_S."""

    def __init__(self, worker: Worker, send: Send, changed: asyncio.Event) -> None:
        """changed: set by whoever changes something that the load says."""
        self._worker = worker
        self._send = send
        self._changed = changed
        self._stopping = False
        self._failing = False

    async def run(self) -> None:
        """Publishes until it is cancelled."""
        while True:
            await self.publish()
            await asyncio.sleep(GAP_S)
            try:
                async with asyncio.timeout(PERIOD_S - GAP_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def publish(self, *, stopping: bool = False) -> None:
        """Publishes the load now. One that can't be sent is replaced by the next."""
        self._stopping = self._stopping or stopping
        self._changed.clear()
        try:
            await self._send(self._worker.load(stopping=self._stopping))
            self._failing = False
        except KafkaBaseError as error:
            if not self._failing:
                log.warning(
                    "The load can not be published; gateways will take this worker for dead.",
                    action="load_not_published",
                    error=type(error).__name__,
                )
            self._failing = True
