"""Tenants' topics in memory, and what the bridge's reading half writes, for its unit tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from schemas.headers import KIND, Kind
from schemas.records import BatchCreate, FileRecord
from schemas.records import Record as Message
from schemas.topics import BATCH_IN, Topic
from streams.domain.bridge.inbox import Record
from streams.kafka.errors import KafkaBaseError
from streams.kafka.group_reader import Held, Mark, TopicPart
from streams.kafka.producer import Headers, Place


@dataclass
class Partition:
    """A partition, and a group of which the test decides who has it."""

    records: list[Record] = field(default_factory=list)
    position: int = 0
    commits: list[Mark] = field(default_factory=list)
    since: int = 1
    #: Records that retention has removed.
    removed: int = 0
    at_once: int = 1000
    paused: bool = False
    pauses: int = 0
    #: Whether the group has moved on, which this process hasn't heard of yet.
    refuses: bool = False
    #: What the next readings again raise, and the next commits.
    fails: Iterator[KafkaBaseError] = field(default_factory=lambda: iter(()))
    commits_fail: Iterator[KafkaBaseError] = field(default_factory=lambda: iter(()))

    def add(self, key: bytes, value: bytes, op: bytes | None = None, at_ms: int = 1000) -> None:
        offset = len(self.records)
        self.records.append(Record(offset=offset, at_ms=at_ms, key=key, op=op, value=value))

    def rebalance(self) -> None:
        """The same process gets the partition again, from its last commit."""
        self.since += 1
        self.paused = False
        self.position = self.commits[-1].offset if self.commits else 0

    def polled(self) -> Sequence[Record]:
        """What came since the last time."""
        if self.paused:
            return ()
        end = min(self.position + self.at_once, len(self.records))
        came, self.position = self.records[self.position : end], end
        return came


class Topics:
    """Submissions and Again, on partitions by tenant."""

    def __init__(self) -> None:
        self.parts: dict[TopicPart, Partition] = {}

    def of(self, tenant: str, partition: int = 0) -> Partition:
        """A tenant's partition; made if it isn't there."""
        part = TopicPart(BATCH_IN.of(tenant).full_name("backhaul"), partition)
        return self.parts.setdefault(part, Partition())

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def poll(self, timeout_s: float) -> Mapping[TopicPart, Sequence[Record]]:
        return {part: came for part, own in self.parts.items() if (came := own.polled())}

    def held(self) -> Mapping[TopicPart, Held]:
        return {
            part: Held(own.since, own.commits[-1].note if own.commits else "")
            for part, own in self.parts.items()
        }

    def pause(self, part: TopicPart) -> None:
        self.parts[part].paused = True
        self.parts[part].pauses += 1

    def resume(self, part: TopicPart) -> None:
        self.parts[part].paused = False

    async def at_end(self, part: TopicPart) -> bool:
        return self.parts[part].position == len(self.parts[part].records)

    async def commit(self, part: TopicPart, since: int, mark: Mark) -> bool:
        own = self.parts[part]
        for error in own.commits_fail:
            raise error
        if own.refuses or own.since != since:
            return False
        own.commits.append(mark)
        return True

    async def read(self, part: TopicPart, begin: int, end: int) -> AsyncGenerator[Record, None]:
        own = self.parts[part]
        for error in own.fails:
            raise error
        for record in own.records[max(begin, own.removed) : end]:
            yield record


class KeepingProducer:
    """Keeps what is sent; Producer and Made.

    fails: what the next sends raise, one after another. refusing: by tenant, what its results
    topic raises at every send; counted in tries.
    """

    def __init__(self) -> None:
        self.creates: list[BatchCreate] = []
        self.files: list[FileRecord] = []
        self.deletions: set[str] = set()
        self.kinds: list[Kind] = []
        self.fails: Iterator[Exception] = iter(())
        self.refusing: dict[str, KafkaBaseError] = {}
        self.tries = 0

    async def send(self, topic: Topic, key: str, record: Message | None) -> Place:
        for error in self.fails:
            raise error
        if isinstance(record, BatchCreate):
            self.creates.append(record)
        if isinstance(record, FileRecord):
            self.files.append(record)
        return Place(0, 0)

    async def send_raw(
        self,
        full_name: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
    ) -> Place:
        for tenant, error in self.refusing.items():
            if f".{tenant}." in full_name:
                self.tries += 1
                raise error
        self.kinds.append(Kind(dict(headers)[KIND].decode()))
        return Place(0, 0)

    async def created(self, batch_id: str, since_ms: int) -> BatchCreate | None:
        return next((c for c in self.creates if c.batch_id == batch_id), None)

    async def deleted(self, file_id: str, since_ms: int) -> bool:
        return file_id in self.deletions

    async def partitions(self, topic: Topic) -> int:
        return 4
