"""Fakes around the controller's parts: tables, a producer, a fence, and consumed events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from schemas.codec import decode, encode
from schemas.partitions import partition_for
from schemas.records import BatchRow, ChunkRow, Record
from schemas.topics import BATCH_EVENT, Topic
from streams.controller.ports import Cause
from streams.kafka.producer import Place
from streams.kafka.role import Consumed

PARTITIONS = 4


@dataclass
class FakeRows:
    """A table in a dict; rows go through the codec, as the real one's do."""

    journal: list[str]
    name: str
    data: dict[str, bytes] = field(default_factory=dict)

    def get(self, key: str) -> BatchRow | ChunkRow | None:
        value = self.data.get(key)
        return None if value is None else cast("BatchRow | ChunkRow", decode(value))

    def put(self, key: str, row: BatchRow | ChunkRow, cause: Cause) -> None:
        self.data[key] = encode(row)
        self.journal.append(self.name)

    def delete(self, key: str, cause: Cause) -> None:
        self.data.pop(key, None)
        self.journal.append(f"-{self.name}")

    def items(self) -> Iterator[tuple[str, BatchRow | ChunkRow]]:
        for key in list(self.data):
            yield key, cast("BatchRow | ChunkRow", self.get(key))


@dataclass
class FakeSender:
    """A producer that keeps what it sent; delay_s: how long the broker takes."""

    journal: list[str]
    sent: list[tuple[Topic, str, Any]] = field(default_factory=list)
    delay_s: float = 0.0
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)

    async def send(self, topic: Topic, key: str, record: Record | None) -> Place:
        return await self._send(topic, partition_for(key, PARTITIONS), key, record)

    async def send_to(
        self, topic: Topic, partition: int, record: Record, key: str | None = None
    ) -> Place:
        return await self._send(topic, partition, key or "", record)

    async def _send(self, topic: Topic, partition: int, key: str, record: Record | None) -> Place:
        await asyncio.sleep(self.delay_s)
        assert record is not None
        self.sent.append((topic, key, record))
        self.journal.append(topic.name)
        offset = self.offsets[topic.name, partition] = (
            self.offsets.get((topic.name, partition), -1) + 1
        )
        return Place(partition, offset)

    def of(self, topic: Topic) -> list[Any]:
        """Everything sent to a topic."""
        return [record for sent, _, record in self.sent if sent is topic]


class FakeGuard:
    """A fence that never closes."""

    async def wait(self) -> None:
        return None


@dataclass
class _Message:
    timestamp: int
    offset: int
    key: bytes
    tp: str = ""
    generation_id: int = 0


@dataclass
class _Event:
    message: _Message


class FakeConsumer:
    """What Consumed asks of the group consumer."""

    def __init__(self, journal: list[str]) -> None:
        self.journal = journal
        self.live = True
        self.acked: list[int] = []

    def ack(self, message: _Message) -> None:
        self.acked.append(message.offset)
        self.journal.append("ack")

    def is_live(self, _tp: object, _generation: int) -> bool:
        return self.live


def consumed(
    record: Any,
    offset: int,
    consumer: FakeConsumer,
    *,
    partition: int | None = None,
    key: bytes | None = None,
) -> Consumed:
    """A consumed event of a batch's log."""
    where = partition_for(record.batch_id, PARTITIONS) if partition is None else partition
    message = _Message(getattr(record, "at_ms", 0) + 5, offset, key or record.batch_id.encode())
    return Consumed(
        record, BATCH_EVENT, where, offset, cast("Any", _Event(message)), cast("Any", consumer)
    )


def in_log(records: Sequence[Any], consumer: FakeConsumer, first: int = 100) -> list[Consumed]:
    """Events one after another."""
    return [consumed(record, first + n, consumer) for n, record in enumerate(records)]
