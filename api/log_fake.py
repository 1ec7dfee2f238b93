"""A public in-memory log for tests, with the faults that a gateway must live with."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

from api.log_port import Positions
from schemas.codec import decode, encode
from schemas.partitions import partition_for
from schemas.records import Record
from schemas.topics import Topic
from streams.domain.clock import Clock, SystemClock
from streams.kafka.errors import BrokerUnreachable, KafkaBaseError, SendFailed
from streams.kafka.producer import Place
from streams.kafka.reader import ReadRecord


class FakeLog:
    """A LogProducer and the source of its FakeReaders.

    unreachable: sends, polls and ends fail. held: readers see nothing new. name: the identity;
    change it to have made the cluster anew. ends_asked: how often readers asked for the ends.
    lose_answer: asked for each record that was written; where it says yes, the sender gets an
    error all the same.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.name = "fake-cluster"
        self.unreachable = False
        self.held = False
        self.ends_asked = 0
        self.lose_answer: Callable[[ReadRecord], bool] = lambda _: False
        self.records: dict[tuple[str, int], list[ReadRecord]] = defaultdict(list)
        self.arrived = asyncio.Event()
        self._clock = clock or SystemClock()

    async def send(self, topic: Topic, key: str, record: Record | None) -> Place:
        return await self.send_to(topic, partition_for(key, topic.partitions), record, key)

    async def send_to(
        self, topic: Topic, partition: int, record: Record | None, key: str = ""
    ) -> Place:
        """Sends to a partition of the caller's choice."""
        await asyncio.sleep(0)
        if self.unreachable:
            raise SendFailed("The fake log was told to be unreachable.")
        # Through the wire form and back, so that what Avro can't hold fails here, too.
        value = None if record is None else decode(encode(record))
        records = self.records[topic.name, partition]
        place = Place(partition, len(records))
        written = ReadRecord(topic, partition, place.offset, self._clock.now_ms(), key, value)
        records.append(written)
        self.wake()
        if self.lose_answer(written):
            raise SendFailed("The fake log was told to lose this answer.")
        return place

    def reader(self, topics: Sequence[Topic]) -> FakeReader:
        """A reader of these topics."""
        return FakeReader(self, topics)

    def wake(self) -> None:
        """Tells readers to look again, as after `held = False`."""
        self.arrived.set()
        self.arrived = asyncio.Event()

    def of(self, topic: Topic) -> list[ReadRecord]:
        """Everything sent to the topic."""
        return [r for (name, _), rs in self.records.items() if name == topic.name for r in rs]

    async def identity(self) -> str:
        """A LogIdentity."""
        return self.name


class FakeReader:
    """A LogReader of a FakeLog."""

    def __init__(self, log: FakeLog, topics: Sequence[Topic]) -> None:
        self._log = log
        self._places = [(t.name, p) for t in topics for p in range(t.partitions)]
        self._positions: dict[tuple[str, int], int] | None = None

    async def start(self, positions: Positions | Literal["beginning", "end"] = "beginning") -> None:
        self._check()
        if positions == "end":
            self._positions = {place: len(self._log.records[place]) for place in self._places}
        else:
            known = {} if isinstance(positions, str) else positions
            self._positions = {place: known.get(place, 0) for place in self._places}

    async def go_to(self, at_ms: int) -> None:
        self._check()
        self._positions = {
            place: next(
                (r.offset for r in self._log.records[place] if r.timestamp_ms >= at_ms),
                len(self._log.records[place]),
            )
            for place in self._places
        }

    async def poll(self, timeout_s: float = 0.2) -> list[ReadRecord]:
        arrived = self._log.arrived
        found = self._take()
        if not found:
            try:
                async with asyncio.timeout(timeout_s):
                    await arrived.wait()
            except TimeoutError:
                return []
            found = self._take()
        return found

    async def ends(self) -> dict[tuple[str, int], int]:
        self._log.ends_asked += 1
        await asyncio.sleep(0)
        self._check()
        return {place: len(self._log.records[place]) for place in self._places}

    def positions(self) -> dict[tuple[str, int], int]:
        return dict(self._positions or {})

    async def stop(self) -> None:
        self._positions = None

    def _take(self) -> list[ReadRecord]:
        self._check()
        if self._positions is None:
            raise KafkaBaseError("The reader is not running.")
        found: list[ReadRecord] = []
        if not self._log.held:
            for place in self._places:
                found += self._log.records[place][self._positions[place] :]
                self._positions[place] = len(self._log.records[place])
        return found

    def _check(self) -> None:
        if self._log.unreachable:
            raise BrokerUnreachable("The fake log was told to be unreachable.")
