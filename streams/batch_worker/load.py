"""Tells the dispatchers what this worker holds and is willing to hold: its credits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

import structlog

from schemas.records import PartitionSeen, PoolLoad, WorkerLoad
from streams.batch_worker.pool import Pool
from streams.domain.clock import Clock
from streams.kafka.errors import KafkaBaseError

log = structlog.get_logger(__name__)

#: At least so often, so that a dispatcher can tell a quiet worker from a dead one.
PERIOD_S = 1.0
#: Changes within this of the last record travel in the next one.
GAP_S = 0.025

Send = Callable[[WorkerLoad], Awaitable[object]]


class Progress:
    """How far each assigned line.ready partition was read, and below what all is finished."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}
        self._finished: dict[int, int] = {}

    def assigned(self, committed: Mapping[int, int]) -> None:
        """These partitions are ours now, read from their commits on; -1: from the beginning."""
        for partition, offset in committed.items():
            self._finished[partition] = max(offset, self._finished.get(partition, -1))
            self._next[partition] = max(offset, self._next.get(partition, 0))

    def revoked(self, partitions: Iterable[int]) -> None:
        """These partitions are not ours any more."""
        for partition in partitions:
            self._next.pop(partition, None)
            self._finished.pop(partition, None)

    def read(self, partition: int, offset: int) -> None:
        """A record was taken."""
        self._next[partition] = offset + 1

    def finished(self, partition: int, offset: int) -> None:
        """Every record up to and with this one is finished and acked."""
        self._finished[partition] = offset + 1

    def seen(self) -> tuple[PartitionSeen, ...]:
        """The partitions, as the load says it."""
        return tuple(
            PartitionSeen(
                partition=partition,
                next_offset=self._next[partition],
                committed=self._finished.get(partition, -1),
            )
            for partition in sorted(self._next)
        )


class LoadReporter:
    """Publishes a WorkerLoad on change, at most one each GAP_S, and each PERIOD_S."""

    def __init__(
        self,
        worker: str,
        pools: Iterable[Pool],
        progress: Progress,
        send: Send,
        clock: Clock,
        changed: asyncio.Event,
    ) -> None:
        """changed: set by whoever changes something that the load says."""
        self._worker = worker
        self._pools = tuple(pools)
        self._progress = progress
        self._send = send
        self._clock = clock
        self._changed = changed
        self._stopping = False
        self._failing = False

    def load(self) -> WorkerLoad:
        """The load as of now."""
        return WorkerLoad(
            worker=self._worker,
            at_ms=self._clock.now_ms(),
            partitions=self._progress.seen(),
            pools=tuple(_load_of(pool) for pool in self._pools),
            stopping=self._stopping,
        )

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
        """Publishes the load now. A load that can't be sent is replaced by the next one."""
        self._stopping = self._stopping or stopping
        self._changed.clear()
        try:
            await self._send(self.load())
            self._failing = False
        except KafkaBaseError as error:
            if not self._failing:
                log.warning(
                    "The load can not be published; dispatchers will give us nothing.",
                    action="load_not_published",
                    error=type(error).__name__,
                )
            self._failing = True


def _load_of(pool: Pool) -> PoolLoad:
    return PoolLoad(
        pool=pool.name,
        credits=pool.credits(),
        held=pool.held,
        in_flight=len(pool.calls),
        wants=pool.wants,
        call_ms=round(pool.calls.call_s * 1000),
        limit=pool.part,
        reason=pool.reason,
    )
