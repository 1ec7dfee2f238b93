"""The bridge's writing half on fakes, as its tests share it."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiokafka import ConsumerRecord

from api.bridge import outbound, patience
from api.bridge.lane_out import LaneParts
from api.bridge.outbound import Outbound
from api.bridge.sender_fake import FakeSenders
from schemas.codec import encode
from schemas.headers import BATCH_ID, KIND, LINE
from schemas.metrics import Metrics
from schemas.records import BatchSnapshot
from streams.adapters.object_store_fake import FakeObjectStore
from streams.domain.clock import ManualClock
from streams.kafka.errors import (
    KafkaBaseError,
)
from streams.kafka.group_reader import Held, Mark, TopicPart
from tests.support.results import ENDED_MS, ended_batch

PART = TopicPart("backhaul.batch.status.v1", 0)
OWN = (PART, "acme")
#: Records of a partition that come with one poll.
_POLLED = 10


class FakeStatuses:
    """Partitions of batch.status; what is given to a process comes from its mark on."""

    def __init__(self) -> None:
        self.log: dict[TopicPart, list[bytes]] = defaultdict(list)
        self.commits: dict[TopicPart, Mark] = {}
        #: Offsets that compaction has removed.
        self.compacted: set[int] = set()
        self._held: dict[TopicPart, Held] = {}
        self.at: dict[TopicPart, int] = {}
        self.again = 0
        #: What the next commits raise.
        self.fails: Iterator[KafkaBaseError] = iter(())

    def give(self, *parts: TopicPart) -> None:
        """A rebalance: these partitions, and only these, are read from their commits on."""
        since = max((h.since for h in self._held.values()), default=0) + 1
        marks = {part: self.commits.get(part, Mark(0)) for part in parts}
        self._held = {part: Held(since, mark.note) for part, mark in marks.items()}
        self.at = {part: mark.offset for part, mark in marks.items()}

    async def commit(self, part: TopicPart, since: int, mark: Mark) -> bool:
        for error in self.fails:
            raise error
        if part not in self._held or self._held[part].since != since:
            return False
        self.commits[part] = mark
        return True

    async def raw(
        self, part: TopicPart, begin: int, end: int
    ) -> AsyncGenerator[ConsumerRecord, None]:
        self.again += 1
        for offset in range(begin, end):
            if offset not in self.compacted:
                yield _raw(part, offset, self.log[part][offset])

    async def poll(self, timeout_s: float) -> Mapping[TopicPart, Sequence[ConsumerRecord]]:
        await asyncio.sleep(0.001)
        found = {}
        for part, at in list(self.at.items()):
            if new := self.log[part][at : at + _POLLED]:
                found[part] = [
                    _raw(part, at + n, value)
                    for n, value in enumerate(new)
                    if at + n not in self.compacted
                ]
                self.at[part] += len(new)
        return found

    def held(self) -> Mapping[TopicPart, Held]:
        return self._held


def _raw(part: TopicPart, offset: int, value: bytes) -> ConsumerRecord:
    return ConsumerRecord(
        topic=part.topic,
        partition=part.partition,
        offset=offset,
        timestamp=0,
        timestamp_type=0,
        key=b"k",
        value=value,
        checksum=None,
        serialized_key_size=1,
        serialized_value_size=len(value),
        headers=(),
    )


def quick_world(monkeypatch: pytest.MonkeyPatch) -> World:
    """One that tries again and commits without the usual pauses."""
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(patience, "_LONGEST_PAUSE_S", 0.002)
    monkeypatch.setattr(outbound, "_COMMIT_S", 0.05)
    return World()


class World:
    """The writing half on fakes."""

    def __init__(self) -> None:
        self.senders = FakeSenders()
        self.statuses = FakeStatuses()
        self.store = FakeObjectStore()
        self.clock = ManualClock(ENDED_MS)
        self.metrics = Metrics()
        self.statuses.give(PART)

    def tell(self, *batches: BatchSnapshot, part: TopicPart = PART) -> None:
        """Snapshots come."""
        self.statuses.log[part] += [encode(batch) for batch in batches]

    def outbound(self) -> Outbound:
        return Outbound(self.statuses, self.parts())

    def parts(self) -> LaneParts:
        return LaneParts(
            again=self.statuses,
            open=self.senders.open,
            store=self.store,
            clock=self.clock,
            metrics=self.metrics,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Outbound]:
        outbound = self.outbound()
        task = asyncio.create_task(outbound.run())
        try:
            yield outbound
            assert not task.done() or task.result() is None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def behind(self) -> bool:
        """Whether something was told that is not committed yet."""
        mark = self.statuses.commits.get(PART, Mark(0))
        return mark.offset < len(self.statuses.log[PART])

    def told(self, batch_id: str = "batch_a") -> list[tuple[str, int | None]]:
        """Kind and line of the records of a batch, in order."""
        found = []
        for record in self.senders.records:
            headers = dict(record.headers)
            if headers[BATCH_ID] == batch_id.encode():
                line = headers.get(LINE)
                found.append((headers[KIND].decode(), None if line is None else int(line)))
        return found

    def end(self, batch_id: str = "batch_a") -> Any:
        """The value of the batch's end."""
        for record in self.senders.records:
            headers = dict(record.headers)
            if headers[BATCH_ID] == batch_id.encode() and headers[KIND] == b"end":
                return json.loads(record.value)
        return None

    def incomplete(self, reason: str) -> float:
        """How often that was why."""
        name = f'backhaul_bridge_incomplete_total{{reason="{reason}"}} '
        for line in self.metrics.exposition().decode().splitlines():
            if line.startswith(name):
                return float(line.removeprefix(name))
        return 0.0


async def ended_batch_later(world: World, batch_id: str) -> BatchSnapshot:
    """As ended_batch, written to a store that may be failing."""
    store = FakeObjectStore()
    batch = await ended_batch(store, batch_id, 1)
    world.store.objects |= store.objects
    return batch


def changed(batch: BatchSnapshot, **changes: Any) -> BatchSnapshot:
    return msgspec.structs.replace(batch, **changes)
