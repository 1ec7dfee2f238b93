"""How far a consumer group has come in a topic, asked again and again over kept connections."""

from __future__ import annotations

from collections.abc import Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from schemas.topics import Topic
from streams.kafka.connection import (
    REQUEST_TIMEOUT_MS,
    connection,
    friendly,
    partition_counts,
)
from streams.kafka.groups import group_name
from streams.settings import Settings


class GroupOffsets:
    """The offsets of one role's group in one topic, of a topic that exists."""

    def __init__(self, settings: Settings, role: str, topic: Topic) -> None:
        self._settings = settings
        self._group = group_name(settings, role)
        self._topic = topic
        self._consumer: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._partitions: list[TopicPartition] = []

    async def start(self) -> None:
        """Connects. Raises BrokerUnreachable, TopicMissing."""
        full_name = self._topic.full_name(self._settings.topic_prefix)
        counts = await partition_counts(self._settings, {self._topic.name: full_name})
        self._partitions = [TopicPartition(full_name, p) for p in counts[self._topic.name]]
        common = connection(self._settings) | {"request_timeout_ms": REQUEST_TIMEOUT_MS}
        consumer = AIOKafkaConsumer(**common, group_id=None, enable_auto_commit=False)
        admin = AIOKafkaAdminClient(**common)
        self._consumer, self._admin = consumer, admin
        try:
            await consumer.start()
            await admin.start()
        except (KafkaError, OSError) as error:
            await self.stop()
            raise friendly(error, self._settings) from error

    async def ends(self) -> Mapping[int, int]:
        """The next offset of each partition. Raises KafkaBaseError."""
        assert self._consumer is not None  # noqa: S101 - started
        try:
            found = await self._consumer.end_offsets(self._partitions)
        except (KafkaError, OSError) as error:
            raise friendly(error, self._settings) from error
        return {tp.partition: offset for tp, offset in found.items()}

    async def committed(self) -> Mapping[int, int]:
        """The group's offsets, or the first that is kept where that is later.

        Partitions of a group that has committed none are left out: it doesn't exist.
        Raises KafkaBaseError.
        """
        assert self._admin is not None  # noqa: S101 - started
        assert self._consumer is not None  # noqa: S101 - started
        try:
            found = await self._admin.list_consumer_group_offsets(
                self._group, partitions=self._partitions
            )
            if all(entry.offset < 0 for entry in found.values()):
                return {}
            begins = await self._consumer.beginning_offsets(self._partitions)
        except (KafkaError, OSError) as error:
            raise friendly(error, self._settings) from error
        return {tp.partition: max(begins[tp], entry.offset) for tp, entry in found.items()}

    async def stop(self) -> None:
        """Disconnects. Idempotent."""
        consumer, admin = self._consumer, self._admin
        self._consumer = self._admin = None
        if consumer is not None:
            await consumer.stop()
        if admin is not None:
            await admin.close()
