"""Follows `capacity`: what workers can take, and what waits at other controllers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from schemas.metrics import Metrics
from schemas.records import ControllerLoad, WorkerLoad
from schemas.topics import CAPACITY
from streams.domain.clock import Clock
from streams.kafka.errors import KafkaBaseError
from streams.kafka.reader import TopicReader
from streams.settings import Settings

log = structlog.get_logger(__name__)

Load = WorkerLoad | ControllerLoad
OnLoad = Callable[[Load, int], None]
_RETRY_S = 1.0
#: Names remembered; far more than processes, and dead ones are dropped oldest first.
_MOST = 10_000


class Loads:
    """The latest load of each process, for whichever dispatcher there is at the time."""

    def __init__(self, settings: Settings, clock: Clock, metrics: Metrics) -> None:
        self._reader = TopicReader(settings, [CAPACITY], metrics=metrics)
        self._clock = clock
        self._latest: dict[str, tuple[Load, int]] = {}
        self.listener: OnLoad | None = None

    async def start(self) -> None:
        """From the end on: each process publishes once a second. Raises KafkaBaseError."""
        await self._reader.start("end")

    async def stop(self) -> None:
        """Disconnects."""
        await self._reader.stop()

    def replay(self, listener: OnLoad) -> None:
        """Tells a new listener what is known, and whatever comes from now on."""
        self.listener = listener
        for load, heard_at_ms in self._latest.values():
            listener(load, heard_at_ms)

    async def work(self) -> None:
        """Reads for ever. Without news from workers nothing is released, which is safe."""
        while True:
            try:
                for read in await self._reader.poll(1.0):
                    if isinstance(read.record, WorkerLoad | ControllerLoad):
                        self._heard(read.key, read.record)
            except KafkaBaseError as error:
                log.warning("Could not read loads.", action="loads_not_read", error=str(error))
                await asyncio.sleep(_RETRY_S)

    def _heard(self, key: str, load: Load) -> None:
        now_ms = self._clock.now_ms()
        self._latest.pop(key, None)
        self._latest[key] = (load, now_ms)
        if len(self._latest) > _MOST:
            del self._latest[next(iter(self._latest))]
        if self.listener is not None:
            self.listener(load, now_ms)
