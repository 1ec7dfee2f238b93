"""Knows which batches have ended, so that none of their lines is started and running ones stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from schemas.records import BatchSnapshot, BatchStatus
from schemas.topics import LINE_READY
from streams.domain.clock import Clock
from streams.kafka.reader import ReadRecord

#: Statuses in which lines may run; UNKNOWN is a newer controller's, which will say when it ends.
_RUNNING = frozenset({BatchStatus.UNKNOWN, BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS})
#: So many ended batches are remembered, the latest; a line of an older one would run in vain.
MAX_REMEMBERED = 50_000


class Reader(Protocol):
    """The part of TopicReader that is needed here."""

    async def poll(self, timeout_s: float = 0.2) -> list[ReadRecord]:
        """What has arrived."""
        ...


class EndedBatches:
    """A bounded set of batch ids; the oldest is forgotten first."""

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._ids: dict[str, None] = {}

    def __contains__(self, batch_id: str) -> bool:
        return batch_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, batch_id: str) -> bool:
        """Remembers; False if it was known."""
        if batch_id in self._ids:
            return False
        self._ids[batch_id] = None
        if len(self._ids) > self._limit:
            del self._ids[next(iter(self._ids))]
        return True


class StatusFollower:
    """Reads batch.status and calls `ended` for each batch that has, and `runs` for the others."""

    def __init__(
        self,
        reader: Reader,
        clock: Clock,
        ended: Callable[[str], None],
        runs: Callable[[BatchSnapshot], None],
    ) -> None:
        self._reader = reader
        self._clock = clock
        self._ended = ended
        self._runs = runs

    async def step(self, timeout_s: float = 0.2) -> None:
        """Reads what has arrived, waiting up to `timeout_s` for it."""
        # No line of a batch is left in line.ready once it is past that topic's retention.
        oldest_ms = self._clock.now_ms() - (LINE_READY.retention_s or 0) * 1000
        for read in await self._reader.poll(timeout_s):
            snapshot = read.record
            if not isinstance(snapshot, BatchSnapshot) or read.timestamp_ms < oldest_ms:
                continue
            if snapshot.status not in _RUNNING:
                self._ended(snapshot.batch_id)
            else:
                self._runs(snapshot)
