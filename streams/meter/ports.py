"""What the meter's parts ask of Kafka, small enough to be faked in a test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from schemas.records import MeterChunkRow, MeterSend, Record
from schemas.topics import Topic
from streams.kafka.producer import Place

MeterRow = MeterChunkRow | MeterSend


@dataclass(frozen=True, slots=True)
class Cause:
    """Where a row belongs, and the watermark of its deletion."""

    partition: int
    offset: int


class Rows(Protocol):
    """A table of rows (streams.kafka.tables.RowTable)."""

    def get(self, key: str) -> MeterRow | None: ...

    def put(self, key: str, row: MeterRow, cause: Cause) -> None: ...

    def delete(self, key: str, cause: Cause) -> None: ...

    def items(self) -> Iterator[tuple[str, MeterRow]]: ...


class Publisher(Protocol):
    """The role's producer (streams.kafka.producer.RecordProducer)."""

    async def send(self, topic: Topic, key: str, record: Record | None) -> Place: ...


class Guard(Protocol):
    """The role's fence (streams.kafka.fence.Fence)."""

    async def wait(self) -> None: ...
