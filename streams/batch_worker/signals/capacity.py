"""Follows `capacity`: the load of real-time lanes, of the other batch-workers, and what is due.

    beginning ──── the past: only the last word of each realtime-worker ────► end at the start
    end at the start ──── loads, as they come ────►

A lane that died before this process began is in the past only, and batch must not take its silence
for peace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
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

    async def ends(self) -> Mapping[tuple[str, int], int]:
        """The offset that the next record of each partition will get."""
        ...

    def positions(self) -> Mapping[tuple[str, int], int]:
        """Where the next poll goes on."""
        ...


class CapacityFollower:
    """Reads loads as they come. While it can't, they grow old, and the gates go to their floors."""

    def __init__(
        self,
        reader: Reader,
        remember: Callable[[Iterable[RealtimeLoad]], None],
        hear: Callable[[Load], None],
    ) -> None:
        """reader: at the beginning. remember: called once, with the past, before any load."""
        self._reader = reader
        self._remember = remember
        self._hear = hear
        self._ends: Mapping[tuple[str, int], int] | None = None
        self._last: dict[str, RealtimeLoad] | None = {}

    async def run(self) -> None:
        """Reads until it is cancelled."""
        failing = False
        while True:
            try:
                await self._step()
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

    async def _step(self) -> None:
        if self._ends is None:
            self._ends = await self._reader.ends()
        past = self._last is not None and self._over(self._ends)
        for read in [] if past else await self._reader.poll(1.0):
            if self._last is None:
                if isinstance(read.record, Load):
                    self._hear(read.record)
            elif isinstance(read.record, RealtimeLoad):
                self._last[read.record.worker] = read.record
        if self._last is not None and self._over(self._ends):
            words, self._last = self._last.values(), None
            self._remember(words)

    def _over(self, ends: Mapping[tuple[str, int], int]) -> bool:
        positions = self._reader.positions()
        return all(positions.get(place, 0) >= end for place, end in ends.items())
