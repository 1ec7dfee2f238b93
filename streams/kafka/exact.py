"""Sending what follows from a partition's records, with how far it was read: both, or neither.

    a partition of a group ──► send, send, … ──► commit(offset, note) ──► send, send, …
                                └──── one transaction ────┘

The transactional id is the partition's own: whoever opens a sender for it shuts out the one before
(a paused process, say), whose open transaction is dropped. So the mark that `mark` tells is right,
and stays right until this sender commits, whatever the group thinks of who has the partition.

Where the broker has no transactions, records come first and the commit after: whoever is killed
between them sends some again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    InvalidProducerEpoch,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerFenced,
)
from aiokafka.structs import OffsetAndMetadata

from schemas.topics import MAX_RECORD_BYTES, Topic
from streams.kafka.connection import REQUEST_TIMEOUT_MS, connection, friendly, partition_counts
from streams.kafka.errors import Fenced, KafkaBaseError, RecordTooLarge, SendFailed
from streams.kafka.failpoint import reach
from streams.kafka.group_reader import Mark, TopicPart
from streams.kafka.groups import committed_marks, group_name
from streams.kafka.producer import MAX_BATCH_BYTES, Headers
from streams.settings import Settings

log = structlog.get_logger(__name__)

#: The broker drops a transaction that is open for longer. Until then nobody who reads only what
#: is committed sees anything behind it.
_TRANSACTION_TIMEOUT_MS = 60_000
#: How long a broker that can be reached may take to let a sender begin, or to take what was sent.
_BEGIN_WITHIN_S = 30.0
_TAKE_WITHIN_S = 45.0
#: How long an orderly end may take.
_END_WITHIN_S = 5.0


class PartSender:
    """Sends for one partition of a group. Every method may raise KafkaBaseError.

    After an error nothing can be said of what was sent since the last commit: open another one.
    """

    def __init__(self, settings: Settings, role: str, part: TopicPart) -> None:
        self._settings = settings
        self._group = group_name(settings, role)
        self._part = part
        self._exactly = settings.kafka_idempotence
        self._in_transaction = False
        self._sent: list[asyncio.Future[object]] = []
        self._partitions: dict[str, int] = {}
        own = f"{self._group}-{part.topic}-{part.partition}"
        exactly = {"transactional_id": own, "transaction_timeout_ms": _TRANSACTION_TIMEOUT_MS}
        self._producer = AIOKafkaProducer(
            **connection(settings),
            acks="all",
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=MAX_RECORD_BYTES,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            **(exactly if self._exactly else {}),
        )
        #: Commits where there are no transactions. It reads nothing and is no member of its group.
        self._committer: AIOKafkaConsumer | None = None

    async def start(self) -> None:
        """Connects, and shuts out whoever sent for the partition before."""
        try:
            async with asyncio.timeout(_BEGIN_WITHIN_S):
                await self._producer.start()
        except (KafkaError, OSError) as error:
            raise friendly(error, self._settings) from error

    async def mark(self) -> Mark | None:
        """How far the partition was committed; None if it never was."""
        tp = TopicPartition(self._part.topic, self._part.partition)
        found = (await committed_marks(self._settings, self._group, [tp]))[tp]
        return None if found.offset < 0 else Mark(found.offset, found.metadata or "")

    async def partitions(self, topic: Topic) -> int:
        """How many partitions the topic has. Raises TopicMissing."""
        if topic.name not in self._partitions:
            names = {topic.name: topic.full_name(self._settings.topic_prefix)}
            found = await partition_counts(self._settings, names)
            self._partitions[topic.name] = len(found[topic.name])
        return self._partitions[topic.name]

    async def send(
        self, topic: Topic, partition: int, key: bytes, value: bytes, headers: Headers
    ) -> None:
        """Hands a record over; waits only while the broker is too slow for what was sent before."""
        name = topic.full_name(self._settings.topic_prefix)
        try:
            await self._begun()
            sent = await self._producer.send(
                name, value=value, key=key, partition=partition, headers=list(headers)
            )
        except MessageSizeTooLargeError as error:
            raise RecordTooLarge(f"A record for {name} is too large.") from error
        except (KafkaError, AssertionError, OSError) as error:
            # aiokafka asserts that a partition exists, and that its transactions are in order.
            raise self._failed(error) from error
        sent.add_done_callback(_heard)
        self._sent.append(sent)

    async def commit(self, mark: Mark) -> None:
        """What was sent since the last time is there, and the partition was read so far."""
        try:
            await self._all_taken()
            reach("sender.taken")
            if self._exactly:
                await self._begun()
                await self._end_transaction(mark)
            else:
                await self._commit_alone(mark)
            reach("sender.committed")
        except (KafkaError, AssertionError, OSError) as error:
            raise self._failed(error) from error

    async def stop(self) -> None:
        """Disconnects; what was sent since the last commit is dropped where that can be."""
        try:
            async with asyncio.timeout(_END_WITHIN_S):
                if self._in_transaction:
                    await self._producer.abort_transaction()
                await self._producer.stop()
        except (KafkaError, AssertionError, OSError) as error:
            log.warning(
                "A sender could not end in order.",
                action="sender_dropped",
                error=type(error).__name__,
            )
            await self._drop()
        if self._committer is not None:
            await self._committer.stop()

    async def _begun(self) -> None:
        if self._exactly and not self._in_transaction:
            await self._producer.begin_transaction()
            self._in_transaction = True

    async def _all_taken(self) -> None:
        sent, self._sent = self._sent, []
        if not sent:
            return
        done, late = await asyncio.wait(sent, timeout=_TAKE_WITHIN_S)
        self._sent = list(late)
        failed = [error for future in done if (error := future.exception()) is not None]
        if failed:
            raise failed[0]
        if late:
            raise SendFailed(f"The broker did not take {len(late)} records in time.")

    async def _end_transaction(self, mark: Mark) -> None:
        tp = TopicPartition(self._part.topic, self._part.partition)
        offsets = {tp: OffsetAndMetadata(mark.offset, mark.note)}
        async with asyncio.timeout(_TAKE_WITHIN_S):
            await self._producer.send_offsets_to_transaction(offsets, self._group)
            reach("sender.offset_sent")
            await self._producer.commit_transaction()
        self._in_transaction = False

    async def _commit_alone(self, mark: Mark) -> None:
        tp = TopicPartition(self._part.topic, self._part.partition)
        if self._committer is None:
            committer = AIOKafkaConsumer(
                **connection(self._settings), group_id=self._group, enable_auto_commit=False
            )
            self._committer = committer
            await committer.start()
            committer.assign([tp])
        await self._committer.commit({tp: OffsetAndMetadata(mark.offset, mark.note)})

    async def _drop(self) -> None:
        """Ends a producer that waits for what will never come; aiokafka's own stop can't."""
        producer = self._producer
        producer._message_accumulator.fail_all(KafkaError("given up"))
        task = producer._sender.sender_task
        if task is not None:
            # The first makes it wait for its requests, and the second ends those.
            for _ in range(2):
                task.cancel()
                await asyncio.wait([task], timeout=_END_WITHIN_S)
        producer._closed = True
        await producer.client.close()
        manager = producer._txn_manager
        if manager is not None and (end := manager.wait_for_transaction_end()) is not None:
            end.add_done_callback(_heard)

    def _failed(self, error: BaseException) -> KafkaBaseError:
        if isinstance(error, ProducerFenced | InvalidProducerEpoch):
            topic, partition = self._part.topic, self._part.partition
            return Fenced(f"Another process sends for {topic}/{partition} by now.")
        if isinstance(error, AssertionError | KafkaTimeoutError) or getattr(
            error, "retriable", False
        ):
            return SendFailed(f"Kafka: {type(error).__name__}: {error}")
        return friendly(error, self._settings)


@asynccontextmanager
async def part_sender(settings: Settings, role: str, part: TopicPart) -> AsyncIterator[PartSender]:
    """A started sender. Raises KafkaBaseError."""
    sender = PartSender(settings, role, part)
    try:
        await sender.start()
        yield sender
    finally:
        stopping = asyncio.create_task(sender.stop())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            # Left behind it would go on trying, and nobody would end it.
            await stopping
            raise


def _heard(future: asyncio.Future[object]) -> None:
    """Lets asyncio not complain of an error that nobody has asked for."""
    if not future.cancelled():
        future.exception()
