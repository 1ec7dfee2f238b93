"""Reading without a consumer group: compacted topics, read models, scans of a log.

Compacted topics have holes that an acking Faust agent commits one at a time, and every reader
wants all partitions from a place of its own; so these readers keep their own positions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from schemas.codec import DecodeError, decode
from schemas.metrics import RECORDS_SKIPPED, Metrics
from schemas.records import Record
from schemas.topics import Topic
from streams.kafka.connection import REQUEST_TIMEOUT_MS, connection, friendly, partition_counts
from streams.kafka.errors import KafkaBaseError
from streams.settings import Settings

log = structlog.get_logger(__name__)

#: The broker holds a fetch for at most this long while nothing new arrives.
FETCH_MAX_WAIT_MS = 100
#: Records of one poll: enough for a fast rebuild, few enough for one transaction of a read model.
_MAX_POLL_RECORDS = 2000

Positions = Mapping[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class ReadRecord:
    """One record as read. record None: a tombstone."""

    topic: Topic
    partition: int
    offset: int
    timestamp_ms: int
    key: str
    record: Record | None


class TopicReader:
    """Reads partitions of some topics, from positions that the caller keeps."""

    def __init__(
        self,
        settings: Settings,
        topics: Sequence[Topic],
        *,
        metrics: Metrics | None = None,
        only: Mapping[str, Collection[int]] | None = None,
    ) -> None:
        """only: the partitions to read, by Topic.name, where not all are wanted."""
        self._settings = settings
        self._only = only or {}
        self._topics = {t.full_name(settings.topic_prefix): t for t in topics}
        self._metrics = metrics or Metrics()
        self._consumer: AIOKafkaConsumer | None = None
        # Answers ends(): on the reading connection the question would wait behind a held fetch.
        self._asker: AIOKafkaConsumer | None = None
        self._partitions: list[TopicPartition] = []
        self._positions: dict[tuple[str, int], int] = {}

    async def start(self, positions: Positions | Literal["beginning", "end"] = "beginning") -> None:
        """Starts reading at `positions`; a partition not in there starts at its beginning.

        A position that the broker no longer has (retention) goes on at the beginning, too.
        Raises BrokerUnreachable, TopicMissing.
        """
        names = {topic.name: full for full, topic in self._topics.items()}
        counts = await partition_counts(self._settings, names)
        self._partitions = [
            TopicPartition(names[n], p)
            for n, found in counts.items()
            for p in found
            if p in self._only.get(n, found)
        ]
        asker = AIOKafkaConsumer(
            **connection(self._settings),
            group_id=None,
            enable_auto_commit=False,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        consumer = AIOKafkaConsumer(
            **connection(self._settings),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            max_poll_records=_MAX_POLL_RECORDS,
        )
        try:
            await asker.start()
            self._asker = asker
            await consumer.start()
            self._consumer = consumer
            consumer.assign(self._partitions)
            await self._seek(consumer, positions)
        except (KafkaError, OSError) as error:
            self._consumer = self._asker = None
            await consumer.stop()
            await asker.stop()
            raise friendly(error, self._settings) from error

    async def go_to(self, at_ms: int) -> None:
        """Goes on with what came at that time (Unix milliseconds) or later. Raises KafkaBaseError.

        In each partition: at the first record whose time isn't before, else at its end. The
        in-memory broker is less exact, and brings more.
        """
        consumer = self._started(self._consumer)
        try:
            ends = await consumer.end_offsets(self._partitions)
            found = await consumer.offsets_for_times(dict.fromkeys(self._partitions, at_ms))
        except (KafkaError, OSError) as error:
            raise friendly(error, self._settings) from error
        for tp in self._partitions:
            first = found.get(tp)
            offset = ends[tp] if first is None else first.offset
            consumer.seek(tp, offset)
            self._positions[self._place(tp)] = offset

    async def poll(self, timeout_s: float = 0.2) -> list[ReadRecord]:
        """What has arrived, at most 2000 records; waits up to `timeout_s` for the first.

        Within a partition in offset order. An undecodable record is passed over, counted and
        logged without its content. Raises KafkaBaseError when reading can't go on.
        """
        consumer = self._started(self._consumer)
        try:
            batches = await consumer.getmany(timeout_ms=int(timeout_s * 1000))
            for tp in self._partitions:
                self._positions[self._place(tp)] = await consumer.position(tp)
        except (KafkaError, OSError) as error:
            raise friendly(error, self._settings) from error
        found: list[ReadRecord] = []
        for tp, records in batches.items():
            topic = self._topics[tp.topic]
            for record in records:
                read = read_record(topic, record, self._metrics)
                if read is not None:
                    found.append(read)
        return found

    async def ends(self) -> dict[tuple[str, int], int]:
        """The offset that the next record of each partition will get, as of now."""
        try:
            ends = await self._started(self._asker).end_offsets(self._partitions)
        except (KafkaError, OSError) as error:
            raise friendly(error, self._settings) from error
        return {self._place(tp): offset for tp, offset in ends.items()}

    def positions(self) -> dict[tuple[str, int], int]:
        """Where the next poll goes on, by (Topic.name, partition). Holes count as read."""
        return dict(self._positions)

    async def stop(self) -> None:
        """Disconnects. Idempotent."""
        consumers = (self._consumer, self._asker)
        self._consumer = self._asker = None
        for consumer in consumers:
            if consumer is not None:
                await consumer.stop()

    async def _seek(
        self, consumer: AIOKafkaConsumer, positions: Positions | Literal["beginning", "end"]
    ) -> None:
        if isinstance(positions, str):
            at_end = positions == "end"
            lookup = consumer.end_offsets if at_end else consumer.beginning_offsets
            start: dict[TopicPartition, int] = await lookup(self._partitions)
        else:
            start = await consumer.beginning_offsets(self._partitions)
            for tp in self._partitions:
                start[tp] = max(start[tp], positions.get(self._place(tp), 0))
        for tp, offset in start.items():
            consumer.seek(tp, offset)
            self._positions[self._place(tp)] = offset

    def _place(self, tp: TopicPartition) -> tuple[str, int]:
        return self._topics[tp.topic].name, tp.partition

    @staticmethod
    def _started(consumer: AIOKafkaConsumer | None) -> AIOKafkaConsumer:
        if consumer is None:
            raise KafkaBaseError("The reader is not running.")
        return consumer


def read_record(topic: Topic, raw: ConsumerRecord, metrics: Metrics) -> ReadRecord | None:
    """The record that was read from `topic`; None, counted and logged, if it is none of its."""
    record: Record | None = None
    try:
        key = "" if raw.key is None else raw.key.decode()
        if raw.value is not None:
            record = decode(raw.value)
            if not isinstance(record, topic.records):
                raise DecodeError(f"{type(record).__name__} does not belong here")
    except (DecodeError, UnicodeDecodeError) as error:
        metrics.counter(RECORDS_SKIPPED).labels(raw.topic).inc()
        log.error(
            "Passed over a record that can't be read.",
            action="record_skipped",
            topic=raw.topic,
            partition=raw.partition,
            offset=raw.offset,
            error=type(error).__name__,
        )
        return None
    return ReadRecord(topic, raw.partition, raw.offset, raw.timestamp, key, record)
