"""Gives tenants the results of their batches that came through Kafka, once they have ended.

    batch.status ── ended, with a Kafka key ──► a lane per partition ──► Delivery, one by one
    (a group's)

A lane opens a sender, which shuts out whoever sent for the partition before, then asks how far the
partition was committed, and goes on there. Whatever fails, it does so again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
from aiokafka import ConsumerRecord

from api.bridge.delivery import Delivery, Sender
from api.bridge.patience import Failure, Patience
from api.read_model.schema import ended_at_ms
from schemas.errors import Undelivered
from schemas.metrics import Metrics
from schemas.records import BatchSnapshot
from schemas.topics import BATCH_OUT, BATCH_STATUS
from streams.domain.bridge.delivered import Delivered
from streams.domain.clock import Clock
from streams.kafka.errors import KafkaBaseError, TopicMissing
from streams.kafka.group_reader import Held, Mark, TopicPart
from streams.kafka.reader import read_record
from streams.ports.object_store import ObjectNotFoundError, ObjectStore, ObjectStoreError

log = structlog.get_logger(__name__)

_POLL_S = 0.5
#: Ended batches of a partition that wait in memory; nothing more is read meanwhile.
_MAX_WAITING = 1000
#: How often it is committed how far was read, where nothing is to be delivered.
_COMMIT_S = 10.0
#: Results of what ended longer ago would be gone from the topic by now. A group that was away for
#: so long may have lost its commits, and must not deliver again whatever has ever ended.
_DELIVERED_FOR_MS = BATCH_OUT.retention_s * 1000
#: A key that is never written: asking for it shows whether the store answers.
_PROBE_KEY = "files/none/none"


class Statuses(Protocol):
    """A group's reading of batch.status."""

    async def poll(self, timeout_s: float) -> Mapping[TopicPart, Sequence[ConsumerRecord]]:
        """What has come, in order within a partition. Raises KafkaBaseError."""
        ...

    def held(self) -> Mapping[TopicPart, Held]:
        """The partitions that are this process's, as of the last poll."""
        ...


@dataclass(frozen=True, kw_only=True)
class OutboundParts:
    """What the bridge's writing half is made of. open: a sender for a partition of statuses."""

    statuses: Statuses
    open: Callable[[TopicPart], AbstractAsyncContextManager[Sender]]
    store: ObjectStore
    clock: Clock
    metrics: Metrics


class Outbound:
    """Reads how batches end and delivers their results."""

    def __init__(self, parts: OutboundParts) -> None:
        self._parts = parts
        self._lanes: dict[TopicPart, _Lane] = {}

    async def run(self) -> None:
        """Works until it is cancelled. Raises KafkaBaseError."""
        try:
            while True:
                await self.step(_POLL_S)
        finally:
            await asyncio.gather(*(lane.stop() for lane in self._lanes.values()))

    async def step(self, timeout_s: float) -> None:
        """Takes in what has come, or waits for so long. Raises KafkaBaseError."""
        for lane in self._lanes.values():
            lane.check()
        if any(lane.full for lane in self._lanes.values()):
            await asyncio.sleep(timeout_s)
            return
        came = await self._parts.statuses.poll(timeout_s)
        # As of that poll: what is read anew comes again in its order, to a lane of its own.
        await self._follow_assignment(dict(self._parts.statuses.held()))
        for part, records in came.items():
            for record in records:
                self._take(self._lanes[part], record)

    async def _follow_assignment(self, held: Mapping[TopicPart, Held]) -> None:
        gone = [
            p for p, lane in self._lanes.items() if p not in held or held[p].since != lane.since
        ]
        await asyncio.gather(*(self._lanes.pop(part).stop() for part in gone))
        for part, now in held.items():
            if part not in self._lanes:
                self._lanes[part] = _Lane(self._parts, part, now.since)

    def _take(self, lane: _Lane, record: ConsumerRecord) -> None:
        read = read_record(BATCH_STATUS, record, self._parts.metrics)
        batch = read.record if read is not None else None
        if isinstance(batch, BatchSnapshot) and self._is_due(batch):
            lane.add(record.offset, batch)
        lane.read_to(record.offset + 1)

    def _is_due(self, batch: BatchSnapshot) -> bool:
        ended_ms = ended_at_ms(batch)
        if not batch.kafka_key or ended_ms is None:
            return False
        return self._parts.clock.now_ms() - ended_ms < _DELIVERED_FOR_MS


class _Lane:
    """One partition of batch.status, in one time that it is this process's."""

    def __init__(self, parts: OutboundParts, part: TopicPart, since: int) -> None:
        self.since = since
        self._parts = parts
        self._part = part
        self._waiting: deque[tuple[int, BatchSnapshot]] = deque()
        self._read_to = 0
        self._news = asyncio.Event()
        self._patience = Patience()
        self._working = asyncio.create_task(self._work(), name=f"results-{part.partition}")

    @property
    def full(self) -> bool:
        """Whether enough waits."""
        return len(self._waiting) >= _MAX_WAITING

    def add(self, offset: int, batch: BatchSnapshot) -> None:
        """An ended batch is to be delivered."""
        self._waiting.append((offset, batch))
        self._news.set()

    def read_to(self, offset: int) -> None:
        """Everything before that was read."""
        self._read_to = offset

    def check(self) -> None:
        """Raises what the lane ended with, which it never should."""
        if self._working.done():
            self._working.result()

    async def stop(self) -> None:
        """Ends the work; what was not committed is delivered by whoever goes on."""
        self._working.cancel()
        await asyncio.wait([self._working])

    async def _work(self) -> None:
        while True:
            try:
                async with self._parts.open(self._part) as sender:
                    await self._deliver_all(sender)
            except (KafkaBaseError, ObjectStoreError) as error:
                await self._wait_after(error)

    async def _deliver_all(self, sender: Sender) -> None:
        mark = await sender.mark() or Mark(0)
        at, done = mark.offset, Delivered.of(mark.note)
        while True:
            while self._waiting:
                offset, batch = self._waiting[0]
                if offset >= at and not done.has(batch.batch_id):
                    done = await self._deliver(sender, offset, batch, done)
                    at = offset + 1
                self._waiting.popleft()
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_COMMIT_S):
                    await self._news.wait()
                    continue
            # The time may run out in the very turn in which a batch comes.
            if not self._waiting and self._read_to > at:
                at = self._read_to
                await sender.commit(Mark(at, done.note()))

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
            self._patience.failed(error, batch.tenant, store_answers=answers)
            why = self._patience.gives_up
            if isinstance(error, TopicMissing) and why is not None:
                # The sender is as good as before: that was asked before anything was sent.
                return await self._give_up(delivery, batch, why)
            raise
        self._patience.delivered(batch.tenant)
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
        log.error(
            "Results of a batch are not delivered; its files have them.",
            action="results_given_up",
            tenant=batch.tenant,
            batch_id=batch.batch_id,
            reason=why.value,
        )
        return after

    async def _wait_after(self, error: Failure) -> None:
        pause_s = self._patience.pause()
        log.warning(
            "Results can't be delivered now; trying again.",
            action="results_retry",
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
