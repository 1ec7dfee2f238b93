"""Follows `capacity`: the load of real-time lanes, of the other batch-workers, and what is due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from schemas.records import ControllerLoad, RealtimeLoad, WorkerLoad
from streams.kafka.errors import KafkaBaseError
from streams.kafka.reader import ReadRecord

log = structlog.get_logger(__name__)

Load = WorkerLoad | ControllerLoad | RealtimeLoad
_RETRY_S = 1.0


class Reader(Protocol):
    """The part of TopicReader that is needed here."""

    async def poll(self, timeout_s: float = 0.2) -> list[ReadRecord]:
        """What has arrived."""
        ...


class CapacityFollower:
    """Reads loads as they come. While it can't, they grow old, and the gates go to their floors."""

    def __init__(self, reader: Reader, hear: Callable[[Load], None]) -> None:
        self._reader = reader
        self._hear = hear

    async def run(self) -> None:
        """Reads until it is cancelled."""
        failing = False
        while True:
            try:
                for read in await self._reader.poll(1.0):
                    if isinstance(read.record, Load):
                        self._hear(read.record)
                failing = False
            except KafkaBaseError as error:
                if not failing:
                    log.warning(
                        "Could not read the loads of other processes.",
                        action="loads_not_read",
                        error=type(error).__name__,
                    )
                failing = True
                await asyncio.sleep(_RETRY_S)
