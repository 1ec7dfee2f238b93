"""The bridge's reading half on fakes: what is committed when, who has a partition, what fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from api.bridge.inbound import Inbound, Parts
from schemas.headers import KIND, Kind
from schemas.metrics import Metrics
from schemas.records import BatchCreate
from schemas.records import Record as Message
from schemas.topics import BATCH_IN, Topic
from streams.adapters.object_store_fake import FakeObjectStore
from streams.domain.bridge.inbox import SEAL_WITHIN_MS, Record
from streams.domain.clock import ManualClock
from streams.kafka.errors import SendFailed, TopicMissing
from streams.kafka.group_reader import Held, Mark, TopicPart
from streams.kafka.producer import Headers, Place
from streams.settings import Settings
from tests.support.bridge import SEAL, line
from tests.support.waiting import eventually

_PART = TopicPart(BATCH_IN.of("acme").full_name("backhaul"), 0)
_SEAL = json.dumps(SEAL).encode()


@dataclass
class _Topic:
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

    def add(self, key: bytes, value: bytes, op: bytes | None = None, at_ms: int = 1000) -> None:
        offset = len(self.records)
        self.records.append(Record(offset=offset, at_ms=at_ms, key=key, op=op, value=value))

    def rebalance(self) -> None:
        """The same process gets the partition again, from its last commit."""
        self.since += 1
        self.paused = False
        self.position = self.commits[-1].offset if self.commits else 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def poll(self, timeout_s: float) -> Mapping[TopicPart, Sequence[Record]]:
        if self.paused:
            return {}
        end = min(self.position + self.at_once, len(self.records))
        came, self.position = self.records[self.position : end], end
        return {_PART: came} if came else {}

    def held(self) -> Mapping[TopicPart, Held]:
        return {_PART: Held(self.since, self.commits[-1].note if self.commits else "")}

    def pause(self, part: TopicPart) -> None:
        self.paused = True
        self.pauses += 1

    def resume(self, part: TopicPart) -> None:
        self.paused = False

    async def at_end(self, part: TopicPart) -> bool:
        return self.position == len(self.records)

    async def commit(self, marks: Mapping[TopicPart, Mark]) -> None:
        self.commits += marks.values()

    async def read(self, part: TopicPart, begin: int, end: int) -> AsyncGenerator[Record, None]:
        for record in self.records[max(begin, self.removed) : end]:
            yield record


@dataclass
class _Producer:
    """Keeps what is sent. fails: what the next sends raise, one after another."""

    creates: list[BatchCreate] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    fails: Iterator[Exception] = field(default_factory=lambda: iter(()))
    no_results_topic: bool = False

    async def send(self, topic: Topic, key: str, record: Message | None) -> Place:
        for error in self.fails:
            raise error
        if isinstance(record, BatchCreate):
            self.creates.append(record)
        return Place(0, 0)

    async def send_raw(
        self,
        full_name: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
    ) -> Place:
        self.kinds.append(Kind(dict(headers)[KIND].decode()))
        return Place(0, 0)

    async def partitions(self, topic: Topic) -> int:
        if self.no_results_topic:
            raise TopicMissing(topic.name)
        return 4


class _World:
    def __init__(self) -> None:
        self.topic, self.producer = _Topic(), _Producer()
        self.store, self.clock = FakeObjectStore(), ManualClock(1000)
        self.all: list[Inbound] = []
        self.inbound = self.started()

    def started(self) -> Inbound:
        """A process that knows nothing but what is committed."""
        self.topic.rebalance()
        inbound = Inbound(
            Parts(
                submissions=self.topic,
                again=self.topic,
                producer=self.producer,
                store=self.store,
                clock=self.clock,
                settings=Settings(),
                metrics=Metrics(),
            )
        )
        self.all.append(inbound)
        return inbound


async def work(inbound: Inbound) -> None:
    """Does all that came. Raises what a lane ended with."""
    await inbound.step(0)
    await eventually(lambda: inbound.idle)
    await inbound.step(0)


@pytest.fixture
async def world() -> AsyncIterator[_World]:
    world = _World()
    yield world
    for inbound in world.all:
        await inbound.stop()


async def test_a_sealed_batch_is_committed_at_once_and_never_made_again(world: _World) -> None:
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    await work(world.inbound)
    assert world.topic.commits[-1] == Mark(2, "2")
    world.inbound = world.started()
    await work(world.inbound)
    assert len(world.producer.creates) == 1


async def test_what_came_before_a_rebalance_counts_once(world: _World) -> None:
    world.topic.add(b"k", line(0))
    await work(world.inbound)
    world.topic.rebalance()
    world.topic.add(b"k", json.dumps(SEAL | {"lines": 1}).encode(), b"seal")
    await work(world.inbound)
    assert world.producer.kinds == [Kind.ACCEPTED]


async def test_a_kill_before_the_commit_makes_the_same_batch_again(world: _World) -> None:
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    world.producer.fails = iter([SendFailed("the file record was not taken")])
    with pytest.raises(SendFailed):
        await work(world.inbound)
    await work(world.started())
    world.topic.commits.clear()
    await work(world.started())
    first, again = world.producer.creates
    assert first == again


async def test_a_store_that_fails_delays_a_batch_and_loses_none(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.bridge.inbound._STORE_RETRY_S", (0.0, 0.0))
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    world.store.fail(3)
    await work(world.inbound)
    assert world.producer.kinds == [Kind.ACCEPTED]


async def test_lines_that_retention_took_are_told_and_make_no_smaller_batch(world: _World) -> None:
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", line(1))
    world.topic.add(b"k", _SEAL, b"seal")
    world.topic.removed = 1
    await work(world.inbound)
    assert (world.producer.creates, world.producer.kinds) == ([], [Kind.REJECTED])


async def test_a_batch_that_nobody_seals_is_given_up_when_nothing_else_comes(
    world: _World,
) -> None:
    world.topic.add(b"k", line(0))
    await work(world.inbound)
    world.clock.advance(2 * SEAL_WITHIN_MS / 1000)
    await eventually(lambda: world.producer.kinds == [Kind.REJECTED])


async def test_a_tenant_without_a_results_topic_gets_its_batches_all_the_same(
    world: _World,
) -> None:
    world.producer.no_results_topic = True
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    await work(world.inbound)
    assert len(world.producer.creates) == 1


async def test_a_commits_note_that_somebody_else_wrote_is_no_offset(world: _World) -> None:
    world.topic.commits.append(Mark(0, "twelve"))
    world.topic.add(b"k", line(0))
    world.topic.add(b"k", _SEAL, b"seal")
    await work(world.started())
    assert len(world.producer.creates) == 1


async def test_what_waits_behind_a_seal_is_bounded_and_nothing_of_it_is_lost(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.bridge.inbound._PAUSE_BYTES", 1000)
    monkeypatch.setattr("api.bridge.inbound._STORE_RETRY_S", (0.01, 0.01))
    for number in range(60):
        world.topic.add(b"k%d" % number, line(number))
        world.topic.add(b"k%d" % number, _SEAL, b"seal")
    world.topic.at_once = 10
    world.store.fail(5)

    async def all_made() -> bool:
        await world.inbound.step(0)
        return len(world.producer.creates) == 60

    await eventually(all_made)
    assert world.topic.pauses > 1
    assert [c.kafka_key for c in world.producer.creates] == [f"k{n}" for n in range(60)]


async def test_what_was_read_is_committed_though_something_comes_all_the_time(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.bridge.inbound._COMMIT_S", 0.05)

    # Each comes before the lane has waited long enough to be idle.
    for _ in range(3000):
        world.topic.add(b"", b"x")
        await world.inbound.step(0)
        await asyncio.sleep(0)
        if world.topic.commits:
            break
    assert world.topic.commits
