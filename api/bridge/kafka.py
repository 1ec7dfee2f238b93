"""The bridge's ports on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from schemas.headers import OP
from schemas.metrics import Metrics
from schemas.partitions import partition_for
from schemas.records import BatchCreate, FileRecord
from schemas.records import Record as Message
from schemas.topics import BATCH_COMMAND, BATCH_IN, FILE, Topic
from streams.domain.bridge.inbox import Record
from streams.kafka.connection import REQUEST_TIMEOUT_MS, connection, friendly, partition_counts
from streams.kafka.errors import Stalled
from streams.kafka.group_reader import GroupReader, Held, Mark, TopicPart
from streams.kafka.reader import read_record
from streams.kafka.records import read_strangers
from streams.settings import Settings

#: The part of the group's name that stands for this reader.
ROLE = "bridge-in"
#: What Kafka calls times that the broker has set.
_LOG_APPEND_TIME = 1
#: What is there to be read again comes at once; a broker that doesn't give it in this time is ill.
_STALLED_S = 30.0
_POLL_MS = 1000
#: The broker dates what comes from tenants; who writes commands dates them, by a clock of its own.
_CLOCKS_DIFFER_MS = 10 * 60 * 1000
#: Who is lent a connection waits for what was asked for before.
_FETCH_MAX_WAIT_MS = 10
_PART_FETCH_BYTES = 4 * 1024 * 1024


class TenantTopics:
    """Submissions: all tenants' topics, read in a group."""

    def __init__(self, settings: Settings) -> None:
        pattern = BATCH_IN.pattern(settings.topic_prefix)
        read_strangers(pattern)
        self._reader = GroupReader(settings, ROLE, pattern=pattern)

    async def start(self) -> None:
        """Joins the group. Raises BrokerUnreachable."""
        await self._reader.start()

    async def poll(self, timeout_s: float) -> Mapping[TopicPart, Sequence[Record]]:
        """As GroupReader's."""
        came = await self._reader.poll(timeout_s)
        return {part: [_record(raw) for raw in records] for part, records in came.items()}

    def held(self) -> Mapping[TopicPart, Held]:
        """As GroupReader's."""
        return self._reader.held()

    def pause(self, part: TopicPart) -> None:
        """As GroupReader's."""
        self._reader.pause(part)

    def resume(self, part: TopicPart) -> None:
        """As GroupReader's."""
        self._reader.resume(part)

    async def at_end(self, part: TopicPart) -> bool:
        """As GroupReader's."""
        return await self._reader.at_end(part)

    async def commit(self, part: TopicPart, since: int, mark: Mark) -> bool:
        """As GroupReader's."""
        return await self._reader.commit(part, since, mark)

    async def stop(self) -> None:
        """Disconnects. Idempotent."""
        await self._reader.stop()


class ReadAgain:
    """Again and StatusesAgain: reads parts of topics without a group, on connections kept open."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._free: list[AIOKafkaConsumer] = []

    async def read(self, part: TopicPart, begin: int, end: int) -> AsyncGenerator[Record, None]:
        """As raw(), of a tenant's topic."""
        async with aclosing(self.raw(part, begin, end)) as records:
            async for raw in records:
                yield _record(raw)

    async def raw(
        self, part: TopicPart, begin: int, end: int
    ) -> AsyncGenerator[ConsumerRecord, None]:
        """The records from `begin` to before `end`, as far as they are still there.

        Raises BrokerUnreachable, Stalled.
        """
        tp = TopicPartition(part.topic, part.partition)
        async with self._lent() as consumer:
            consumer.assign([tp])
            consumer.seek(tp, begin)
            silent_s = 0.0
            # What was removed is passed over, and so are the marks of transactions.
            while await _position(consumer, tp) < end:
                records = (await consumer.getmany(tp, timeout_ms=_POLL_MS)).get(tp, [])
                silent_s = 0.0 if records else silent_s + _POLL_MS / 1000
                if silent_s > _STALLED_S:
                    raise Stalled(f"{part.topic} does not give its records again.")
                for raw in records:
                    if raw.offset < end:
                        yield raw

    async def since(self, part: TopicPart, at_ms: int) -> tuple[int, int]:
        """The first offset with this time or a later one, and the end. Raises BrokerUnreachable."""
        tp = TopicPartition(part.topic, part.partition)
        async with self._lent() as consumer:
            end = (await consumer.end_offsets([tp]))[tp]
            found = (await consumer.offsets_for_times({tp: at_ms}))[tp]
            return (end if found is None else found.offset, end)

    async def stop(self) -> None:
        """Disconnects, when nothing is read any more. Idempotent."""
        while self._free:
            await self._free.pop().stop()

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = self._free.pop() if self._free else None
        try:
            consumer = consumer or await self._started()
            yield consumer
        except (KafkaError, OSError) as error:
            raise friendly(error, self._settings) from error
        finally:
            if consumer is not None:
                # Else it would go on asking for what comes.
                consumer.pause(*consumer.assignment())
                self._free.append(consumer)

    async def _started(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **connection(self._settings),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=_PART_FETCH_BYTES,
            fetch_max_wait_ms=_FETCH_MAX_WAIT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        try:
            await consumer.start()
        except BaseException:
            await consumer.stop()
            raise
        return consumer


async def _position(consumer: AIOKafkaConsumer, tp: TopicPartition) -> int:
    # Where the beginning was removed, it is asked for, and without a leader for ever.
    async with asyncio.timeout(_STALLED_S):
        return int(await consumer.position(tp))


class ReadMade:
    """Made: reads `batch.command`, which keeps its records for longer than tenants' topics, and
    `file`."""

    def __init__(self, settings: Settings, again: ReadAgain, metrics: Metrics) -> None:
        self._settings, self._again, self._metrics = settings, again, metrics

    async def created(self, batch_id: str, since_ms: int) -> BatchCreate | None:
        """The batch's create, if it is there."""
        async with aclosing(self._of_key(BATCH_COMMAND, batch_id, since_ms)) as records:
            async for record in records:
                if isinstance(record, BatchCreate):
                    return record
        return None

    async def deleted(self, file_id: str, since_ms: int) -> bool:
        """Whether the last that is there of the file is its end."""
        deleted = False
        async with aclosing(self._of_key(FILE, file_id, since_ms)) as records:
            async for record in records:
                deleted = not isinstance(record, FileRecord) or record.deleted_at_ms is not None
        return deleted

    async def _of_key(
        self, topic: Topic, key: str, since_ms: int
    ) -> AsyncGenerator[Message | None, None]:
        """The key's records since then; None for a tombstone. Raises KafkaBaseError."""
        name = topic.full_name(self._settings.topic_prefix)
        found = await partition_counts(self._settings, {topic.name: name})
        part = TopicPart(name, partition_for(key, len(found[topic.name])))
        begin, end = await self._again.since(part, max(0, since_ms - _CLOCKS_DIFFER_MS))
        async with aclosing(self._again.raw(part, begin, end)) as records:
            async for raw in records:
                if raw.key == key.encode():
                    read = read_record(topic, raw, self._metrics)
                    if read is not None:
                        yield read.record


def _record(raw: ConsumerRecord) -> Record:
    # The last header counts, as where a producer's interceptor adds to what was there.
    ops = [value for name, value in raw.headers if name == OP]
    return Record(
        offset=raw.offset,
        at_ms=raw.timestamp,
        key=raw.key,
        op=ops[-1] if ops else None,
        value=raw.value,
        stamped=raw.timestamp_type == _LOG_APPEND_TIME,
    )
