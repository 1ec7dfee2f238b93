"""What roles and the gateway send records with: one producer, acknowledged by all replicas.

Faust's own producer serves the changelogs only: this one partitions by our function, and a
send returns when the broker has the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, UnknownTopicOrPartitionError

from schemas.codec import encode
from schemas.metrics import PRODUCE_FAILURES, RECORDS_PRODUCED, Metrics
from schemas.partitions import partition_for
from schemas.records import Record
from schemas.topics import MAX_RECORD_BYTES, Topic
from streams.kafka.connection import REQUEST_TIMEOUT_MS, connection, friendly
from streams.kafka.errors import RecordTooLarge, SendFailed, TopicMissing
from streams.settings import Settings

log = structlog.get_logger(__name__)

#: A batch of small records grows to this; a larger record travels alone.
MAX_BATCH_BYTES = 256 * 1024
#: Key, headers and framing of a record, for which MAX_RECORD_BYTES leaves room.
_FRAMING_BYTES = 4096
#: Largest encoded value. A record that the broker refuses would break the idempotent sequence
#: and with it the whole producer, so size is judged before anything is sent.
MAX_VALUE_BYTES = MAX_RECORD_BYTES - _FRAMING_BYTES

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the broker put a record."""

    partition: int
    offset: int


class RecordProducer:
    """Sends records, idempotently where the broker can, with acks=all."""

    def __init__(
        self, settings: Settings, *, linger_ms: int = 0, metrics: Metrics | None = None
    ) -> None:
        self._settings = settings
        self._linger_ms = linger_ms
        self._metrics = metrics or Metrics()
        self._producer: AIOKafkaProducer | None = None
        self._names: dict[str, str] = {}

    async def start(self) -> None:
        """Connects. Raises BrokerUnreachable."""
        producer = AIOKafkaProducer(
            **connection(self._settings),
            acks="all",
            enable_idempotence=self._settings.kafka_idempotence,
            linger_ms=self._linger_ms,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=MAX_RECORD_BYTES,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await producer.stop()
            raise friendly(error, self._settings) from error
        self._producer = producer

    async def stop(self) -> None:
        """Sends what waits, then disconnects. Idempotent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def send(self, topic: Topic, key: str, record: Record | None) -> Place:
        """Sends to the key's partition; None is a tombstone. Raises SendFailed, TopicMissing."""
        partition = partition_for(key, await self.partitions(topic))
        value = None if record is None else encode(record)
        return await self.send_raw(self._full_name(topic), partition, key.encode(), value)

    async def send_to(
        self, topic: Topic, partition: int, record: Record, key: str | None = None
    ) -> Place:
        """Sends to a partition of the caller's choice. Raises SendFailed, TopicMissing."""
        raw_key = None if key is None else key.encode()
        return await self.send_raw(self._full_name(topic), partition, raw_key, encode(record))

    async def send_raw(
        self,
        full_name: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
    ) -> Place:
        """Sends bytes as they are, for dead letters. Raises SendFailed, TopicMissing."""
        if value is not None and len(value) > MAX_VALUE_BYTES:
            raise RecordTooLarge(f"A record of {len(value)} bytes for {full_name} is too large.")
        try:
            sent = await self._started().send_and_wait(
                full_name, value=value, key=key, partition=partition, headers=list(headers)
            )
        except UnknownTopicOrPartitionError as error:
            raise TopicMissing(
                f"{full_name} does not exist; run `backhaul topics apply`."
            ) from error
        except MessageSizeTooLargeError as error:
            raise RecordTooLarge(f"A record for {full_name} is too large.") from error
        except (KafkaError, AssertionError) as error:
            # aiokafka asserts that an explicit partition exists.
            self._metrics.counter(PRODUCE_FAILURES).labels(full_name).inc()
            raise SendFailed(f"{full_name}: {type(error).__name__}: {error}") from error
        self._metrics.counter(RECORDS_PRODUCED).labels(full_name).inc()
        return Place(sent.partition, sent.offset)

    async def partitions(self, topic: Topic) -> int:
        """How many partitions the topic has. Raises TopicMissing, KafkaBaseError."""
        full_name = self._full_name(topic)
        known = self._started().client.cluster.partitions_for_topic(full_name)
        if known is None:
            try:
                known = await self._started().partitions_for(full_name)
            except UnknownTopicOrPartitionError as error:
                raise TopicMissing(
                    f"{full_name} does not exist; run `backhaul topics apply`."
                ) from error
            except (KafkaError, OSError) as error:
                raise friendly(error, self._settings) from error
        return len(known)

    def _full_name(self, topic: Topic) -> str:
        name = self._names.get(topic.name)
        if name is None:
            name = self._names[topic.name] = topic.full_name(self._settings.topic_prefix)
        return name

    def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise SendFailed("The producer is not running.")
        return self._producer
