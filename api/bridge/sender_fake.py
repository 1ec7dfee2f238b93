"""A public in-memory topic for results, with senders that behave as the broker's do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from schemas.topics import Topic
from streams.kafka.errors import Fenced, KafkaBaseError, SendFailed, TopicMissing
from streams.kafka.group_reader import Mark, TopicPart
from streams.kafka.producer import Headers

Place = tuple[TopicPart, str]


@dataclass(frozen=True, slots=True)
class Sent:
    """A record that readers see."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    headers: Headers


class FakeSenders:
    """Senders for partitions, and what they committed.

    records: what readers see, in order. marks: by partition and tenant, what was committed last.
    missing: topics, by Topic.name, that are not there; stuck: topics that take nothing. fail():
    makes the next calls fail. hold: after how many commits the others wait for ever.
    """

    def __init__(self, partitions: int = 4) -> None:
        self.records: list[Sent] = []
        self.marks: dict[Place, Mark] = {}
        self.missing: set[str] = set()
        self.stuck: set[str] = set()
        self.hold: dict[Place, int] = {}
        self.commits: Counter[Place] = Counter()
        self.opened: Counter[Place] = Counter()
        self._partitions = partitions
        self._failures: list[tuple[str, int, KafkaBaseError]] = []

    def fail(self, call: str, error: KafkaBaseError, *, after: int = 0, times: int = 1) -> None:
        """The next `times` calls of `call` raise it, after so many more.

        call: open, partitions, send or commit.
        """
        self._failures = [(call, after, error)] * times

    @asynccontextmanager
    async def open(self, part: TopicPart, tenant: str = "acme") -> AsyncIterator[FakeSender]:
        """A sender; the one before it is shut out."""
        self.called("open")
        self.opened[part, tenant] += 1
        yield FakeSender(self, (part, tenant), self.opened[part, tenant])

    def called(self, call: str) -> None:
        """Raises what this call is to fail with."""
        if self._failures and self._failures[0][0] == call:
            _, after, error = self._failures[0]
            if after:
                self._failures[0] = (call, after - 1, error)
                return
            del self._failures[0]
            raise error

    def partitions(self, topic: Topic) -> int:
        """How many the topic has. Raises TopicMissing."""
        self.called("partitions")
        if topic.name in self.missing:
            raise TopicMissing(f"{topic.name} does not exist.")
        return self._partitions


class FakeSender:
    """A Sender. What it has sent is seen once it commits."""

    def __init__(self, senders: FakeSenders, part: Place, number: int) -> None:
        self._senders = senders
        self._part = part
        self._number = number
        self._sent: list[Sent] = []

    async def mark(self) -> Mark | None:
        return self._senders.marks.get(self._part)

    async def partitions(self, topic: Topic) -> int:
        await asyncio.sleep(0)
        return self._senders.partitions(topic)

    async def send(
        self, topic: Topic, partition: int, key: bytes, value: bytes, headers: Headers
    ) -> None:
        self._senders.called("send")
        if topic.name in self._senders.stuck:
            raise SendFailed(f"{topic.name} has no leader.")
        self._sent.append(Sent(topic.name, partition, key, value, tuple(headers)))

    async def commit(self, mark: Mark) -> None:
        await asyncio.sleep(0)
        if self._senders.commits[self._part] >= self._senders.hold.get(self._part, 2**31):
            await asyncio.Event().wait()
        self._senders.called("commit")
        if self._number != self._senders.opened[self._part]:
            raise Fenced("Another sender was opened.")
        self._senders.records += self._sent
        self._sent = []
        self._senders.marks[self._part] = mark
        self._senders.commits[self._part] += 1
