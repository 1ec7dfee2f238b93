"""What the controller's parts ask of Kafka, small enough to be faked in a test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from schemas.records import BatchRow, ChunkRow, Record
from schemas.topics import Topic
from streams.kafka.producer import Place


@dataclass(frozen=True, slots=True)
class Cause:
    """The event that a change of a table follows from."""

    partition: int
    offset: int


class Rows(Protocol):
    """A table of rows (streams.kafka.tables.RowTable)."""

    def get(self, key: str) -> BatchRow | ChunkRow | None: ...

    def put(self, key: str, row: BatchRow | ChunkRow, cause: Cause) -> None: ...

    def delete(self, key: str, cause: Cause) -> None: ...

    def items(self) -> Iterator[tuple[str, BatchRow | ChunkRow]]: ...


class Sender(Protocol):
    """The role's producer (streams.kafka.producer.RecordProducer)."""

    async def send(self, topic: Topic, key: str, record: Record | None) -> Place: ...

    async def send_to(
        self, topic: Topic, partition: int, record: Record, key: str | None = None
    ) -> Place: ...


class Guard(Protocol):
    """The role's fence (streams.kafka.fence.Fence)."""

    async def wait(self) -> None: ...
