"""What the bridge needs of Kafka, as Protocols: `streams.kafka` has them, the tests' fakes too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from schemas.records import Record as Message
from schemas.topics import Topic
from streams.domain.bridge.inbox import Record
from streams.kafka.group_reader import Held, Mark, TopicPart
from streams.kafka.producer import Headers, Place


class Submissions(Protocol):
    """A group's reading of all tenants' topics, also those that are made later."""

    async def start(self) -> None:
        """Joins the group. Raises KafkaBaseError."""
        ...

    async def poll(self, timeout_s: float) -> Mapping[TopicPart, Sequence[Record]]:
        """What has come, in order within a partition. Raises KafkaBaseError."""
        ...

    def held(self) -> Mapping[TopicPart, Held]:
        """The partitions that are this process's, as of the last poll."""
        ...

    async def at_end(self, part: TopicPart) -> bool:
        """Whether nothing more has come. Raises KafkaBaseError."""
        ...

    async def commit(self, marks: Mapping[TopicPart, Mark]) -> None:
        """Says how far these were read; nothing if another has them now. Raises KafkaBaseError."""
        ...

    async def stop(self) -> None:
        """Leaves the group. Idempotent."""
        ...


class Again(Protocol):
    """Reads a part of a topic once more."""

    def read(self, part: TopicPart, begin: int, end: int) -> AsyncIterator[Record]:
        """The records from offset `begin` to before `end`, as far as they are still there.

        Raises KafkaBaseError.
        """
        ...


class Producer(Protocol):
    """The part of RecordProducer that is needed here."""

    async def send(self, topic: Topic, key: str, record: Message | None) -> Place: ...

    async def send_raw(
        self,
        full_name: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
    ) -> Place: ...

    async def partitions(self, topic: Topic) -> int: ...
