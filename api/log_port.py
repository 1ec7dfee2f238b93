"""What the gateway needs of Kafka, as Protocols: `streams.kafka` has them, `api.log_fake` too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from schemas.records import Record
from schemas.topics import Topic
from streams.kafka.producer import Place
from streams.kafka.reader import ReadRecord

#: Offsets by (Topic.name, partition).
Positions = Mapping[tuple[str, int], int]


class LogProducer(Protocol):
    """Sends records to topics."""

    async def send(self, topic: Topic, key: str, record: Record | None) -> Place:
        """Sends one keyed record, None for a tombstone; returns when the log has it.

        Raises KafkaBaseError, and then the log may or may not have it.
        """
        ...


class LogReader(Protocol):
    """Reads all partitions of some topics, each in offset order, without a group."""

    async def start(self, positions: Positions | Literal["beginning", "end"] = "beginning") -> None:
        """Starts at `positions`; a partition not in there starts at its beginning."""
        ...

    async def go_to(self, at_ms: int) -> None:
        """Goes on with what came at that time (Unix milliseconds) or later."""
        ...

    async def poll(self, timeout_s: float = 0.2) -> list[ReadRecord]:
        """What has arrived; waits for at most `timeout_s`. Raises KafkaBaseError."""
        ...

    async def ends(self) -> dict[tuple[str, int], int]:
        """The offset that the next record of each partition will get. Raises KafkaBaseError."""
        ...

    def positions(self) -> dict[tuple[str, int], int]:
        """Where the next poll goes on; holes count as read."""
        ...

    async def stop(self) -> None:
        """Disconnects. May be started again."""
        ...


class LogIdentity(Protocol):
    """Which log this is: another cluster or a topic made anew gives another answer."""

    async def __call__(self) -> str:
        """Raises KafkaBaseError."""
        ...
