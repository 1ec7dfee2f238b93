"""What the bridge needs of Kafka, as Protocols: `streams.kafka` has them, the tests' fakes too."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from schemas.records import BatchCreate
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
        """The partitions that are this process's now; after a poll, those that it took over."""
        ...

    def pause(self, part: TopicPart) -> None:
        """Nothing more of this partition comes, until it is resumed or read anew."""
        ...

    def resume(self, part: TopicPart) -> None:
        """Ends a pause."""
        ...

    async def at_end(self, part: TopicPart) -> bool:
        """Whether nothing more has come. Raises KafkaBaseError."""
        ...

    async def commit(self, part: TopicPart, since: int, mark: Mark) -> bool:
        """Says how far a partition was read that is this process's since then (Held.since).

        False if it no longer is: nothing is committed. Raises KafkaBaseError.
        """
        ...

    async def stop(self) -> None:
        """Leaves the group. Idempotent."""
        ...


class Again(Protocol):
    """Reads parts of topics once more; several at the same time."""

    def read(self, part: TopicPart, begin: int, end: int) -> AsyncGenerator[Record, None]:
        """The records from offset `begin` to before `end`, as far as they are still there.

        Raises KafkaBaseError.
        """
        ...


class Made(Protocol):
    """Looks what was made already. since_ms: nothing that is looked for is older."""

    async def created(self, batch_id: str, since_ms: int) -> BatchCreate | None:
        """The create of this batch, if it is on the log. Raises KafkaBaseError."""
        ...

    async def deleted(self, file_id: str, since_ms: int) -> bool:
        """Whether this file was made and deleted. Raises KafkaBaseError."""
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
