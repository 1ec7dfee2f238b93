"""The results of one tenant's batches of one partition of batch.status, in the log's order.

A lane opens a sender, which shuts out whoever sent for it before, then asks how far it was
committed, and goes on there. Whatever fails, it does so again. Each tenant has transactions of its
own: what its topic doesn't take fails the whole of one, after all the time that it is given.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Protocol

import structlog
from aiokafka import ConsumerRecord

from api.bridge.delivery import Delivery, Sender
from api.bridge.lanes import Worker
from api.bridge.patience import Failure, Patience
from api.bridge.turns import Turns
from api.read_model.schema import ended_at_ms
from schemas.errors import Undelivered
from schemas.metrics import BRIDGE_INCOMPLETE, Metrics
from schemas.records import BatchSnapshot
from schemas.topics import BATCH_OUT, BATCH_STATUS
from streams.domain.bridge.delivered import Delivered
from streams.domain.clock import Clock
from streams.kafka.errors import KafkaBaseError, TopicMissing
from streams.kafka.group_reader import Mark, TopicPart
from streams.kafka.reader import read_record
from streams.ports.object_store import ObjectNotFoundError, ObjectStore, ObjectStoreError

log = structlog.get_logger(__name__)

#: Snapshots of a lane that wait in memory, by what they take up as records, and those of all lanes;
#: one of each lane always may. The others are read again when their turn comes.
_LANE_BYTES = 128 * 1024
_MAX_WAITING_BYTES = 64 * 1024 * 1024
#: Who has delivered for so long makes way for others, after the batch that it is at.
_SLICE_S = 5.0
#: Results of what ended longer ago would be gone from the topic by now. A group that was away for
#: so long may have lost its commits, and must not deliver again whatever has ever ended.
_DELIVERED_FOR_MS = BATCH_OUT.retention_s * 1000
#: A key that is never written: asking for it shows whether the store answers.
_PROBE_KEY = "files/none/none"


class StatusesAgain(Protocol):
    """Reads parts of batch.status once more; several at the same time."""

    def raw(self, part: TopicPart, begin: int, end: int) -> AsyncGenerator[ConsumerRecord, None]:
        """The records from offset `begin` to before `end`, as far as they are still there.

        Raises KafkaBaseError.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LaneParts:
    """What the lanes are made of. open: a sender for a partition of batch.status and a tenant."""

    again: StatusesAgain
    open: Callable[[TopicPart, str], AbstractAsyncContextManager[Sender]]
    store: ObjectStore
    clock: Clock
    metrics: Metrics


def due(parts: LaneParts, record: ConsumerRecord) -> BatchSnapshot | None:
    """The batch that a record of batch.status tells, if its results are to be delivered."""
    read = read_record(BATCH_STATUS, record, parts.metrics)
    batch = read.record if read is not None else None
    return batch if isinstance(batch, BatchSnapshot) and _is_due(parts, batch) else None


def _is_due(parts: LaneParts, batch: BatchSnapshot) -> bool:
    ended_ms = ended_at_ms(batch)
    if not batch.kafka_key or ended_ms is None:
        return False
    return parts.clock.now_ms() - ended_ms < _DELIVERED_FOR_MS


class Room:
    """How much waits in the memory of all lanes together."""

    def __init__(self) -> None:
        self.used_bytes = 0


class TenantLane(Worker):
    """Delivers one by one; waits by itself when that fails."""

    def __init__(
        self, parts: LaneParts, part: TopicPart, tenant: str, turns: Turns, room: Room
    ) -> None:
        super().__init__(f"results-{part.partition}")
        self._parts, self._part, self._tenant, self._turns = parts, part, tenant, turns
        self._room = room
        self._waiting: deque[tuple[int, int, BatchSnapshot]] = deque()
        self._waiting_bytes = 0
        #: Behind what waits: the offsets, from one to before the other, of what is read again.
        self._unkept: tuple[int, int] | None = None
        self._news = asyncio.Event()
        self._patience = Patience()

    @property
    def floor(self) -> int | None:
        """Where the first batch stands that is not delivered yet; None if all are."""
        if self._waiting:
            return self._waiting[0][0]
        return self._unkept and self._unkept[0]

    def add(self, record: ConsumerRecord, batch: BatchSnapshot) -> None:
        """An ended batch is to be delivered; later than all before."""
        if self._unkept is not None or not self._keep(record, batch):
            begin = record.offset if self._unkept is None else self._unkept[0]
            self._unkept = (begin, record.offset + 1)
        self._news.set()

    def _keep(self, record: ConsumerRecord, batch: BatchSnapshot) -> bool:
        size = len(record.value)
        full = (
            self._waiting_bytes + size > _LANE_BYTES
            or self._room.used_bytes + size > _MAX_WAITING_BYTES
        )
        if self._waiting and full:
            return False
        self._waiting.append((record.offset, size, batch))
        self._waiting_bytes += size
        self._room.used_bytes += size
        return True

    async def stop(self) -> None:
        """As Worker's; what waits is forgotten."""
        await super().stop()
        self._room.used_bytes -= self._waiting_bytes
        self._waiting.clear()
        self._waiting_bytes = 0

    def _done_with_first(self) -> None:
        _, size, _ = self._waiting.popleft()
        self._waiting_bytes -= size
        self._room.used_bytes -= size

    async def _work(self) -> None:
        while True:
            self._pass_over_old()
            if self.floor is None:
                self._news.clear()
                await self._news.wait()
            try:
                async with self._turns.turn(self._tenant, failing=self._patience.failing):
                    await self._refill()
                    async with self._parts.open(self._part, self._tenant) as sender:
                        await self._deliver_some(sender)
            except (KafkaBaseError, ObjectStoreError) as error:
                self._patience.failing = True
                await self._wait_after(error)

    async def _refill(self) -> None:
        """Reads again what was not kept, if its turn has come."""
        if self._waiting or self._unkept is None:
            return
        begin, end = self._unkept
        async with aclosing(self._parts.again.raw(self._part, begin, end)) as records:
            async for record in records:
                batch = due(self._parts, record)
                if batch is None or batch.tenant != self._tenant:
                    continue
                if not self._keep(record, batch):
                    end = record.offset
                    break
        # More may have come meanwhile.
        _, last = self._unkept
        self._unkept = None if end == last else (end, last)

    async def _deliver_some(self, sender: Sender) -> None:
        mark = await sender.mark() or Mark(0)
        at, done = mark.offset, Delivered.of(mark.note)
        clock = asyncio.get_running_loop().time
        until_s = clock() + _SLICE_S
        while self._waiting and clock() < until_s:
            offset, _, batch = self._waiting[0]
            if offset >= at and not done.has(batch.batch_id):
                done = await self._deliver(sender, offset, batch, done)
                at = offset + 1
            self._done_with_first()

    async def _deliver(
        self, sender: Sender, offset: int, batch: BatchSnapshot, done: Delivered
    ) -> Delivered:
        delivery = Delivery(sender, self._parts.metrics, batch, offset, done)
        gives_up = self._patience.gives_up
        unreadable = gives_up is Undelivered.FILE_UNREADABLE
        if gives_up is not None and not unreadable:
            return await self._give_up(delivery, batch, gives_up)
        try:
            after = await delivery.run(self._parts.store, even_if_unreadable=unreadable)
        except (KafkaBaseError, ObjectStoreError) as error:
            answers = isinstance(error, ObjectStoreError) and await self._store_answers()
            self._patience.failed(error, store_answers=answers)
            why = self._patience.gives_up
            if isinstance(error, TopicMissing) and why is not None:
                # The sender is as good as before: that was asked before anything was sent.
                return await self._give_up(delivery, batch, why)
            raise
        self._patience.delivered()
        log.info(
            "The results of a batch were delivered.",
            action="results_delivered",
            tenant=batch.tenant,
            batch_id=batch.batch_id,
        )
        return after

    async def _give_up(
        self, delivery: Delivery, batch: BatchSnapshot, why: Undelivered
    ) -> Delivered:
        after = await delivery.give_up(why)
        self._patience.given_up()
        self._tell_given_up(batch, why)
        return after

    def _pass_over_old(self) -> None:
        """Of what could not be delivered for so long that its topic would have forgotten it."""
        while self._waiting and not _is_due(self._parts, self._waiting[0][2]):
            why = self._patience.gives_up or Undelivered.TOPIC_REFUSED
            self._parts.metrics.counter(BRIDGE_INCOMPLETE).labels(why.value).inc()
            self._tell_given_up(self._waiting[0][2], why)
            self._done_with_first()

    def _tell_given_up(self, batch: BatchSnapshot, why: Undelivered) -> None:
        log.error(
            "Results of a batch are not delivered; its files have them.",
            action="results_given_up",
            tenant=batch.tenant,
            batch_id=batch.batch_id,
            reason=why.value,
        )

    async def _wait_after(self, error: Failure) -> None:
        pause_s = self._patience.pause()
        log.warning(
            "Results can't be delivered now; trying again.",
            action="results_retry",
            tenant=self._tenant,
            partition=self._part.partition,
            error=type(error).__name__,
            why=str(error),
            pause_s=pause_s,
        )
        await asyncio.sleep(pause_s)

    async def _store_answers(self) -> bool:
        try:
            await self._parts.store.size(_PROBE_KEY)
        except ObjectNotFoundError:
            return True
        except ObjectStoreError:
            return False
        return True
