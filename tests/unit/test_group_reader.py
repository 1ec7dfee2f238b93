"""What a group's reader does when a topic can't be read, and when its partitions move."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, TopicAuthorizationFailedError
from aiokafka.structs import OffsetAndMetadata

from streams.kafka import group_reader
from streams.kafka.errors import KafkaBaseError
from streams.kafka.group_reader import GroupReader, Mark, TopicPart
from streams.settings import Settings

_EVIL, _GOOD = TopicPartition("evil", 0), TopicPartition("good", 0)


class _Consumer:
    """A consumer of two topics. denied: what may not be read."""

    def __init__(self) -> None:
        self.denied: set[str] = set()
        self.stopped: set[TopicPartition] = set()
        self.positions: dict[TopicPartition, int] = {}
        self.commits: list[dict[TopicPartition, OffsetAndMetadata]] = []
        self.refuses = False

    def __call__(self, **_: Any) -> _Consumer:
        return self

    def subscribe(self, topics: object = None, *, pattern: str = "", listener: Any) -> None:
        self.listener = listener

    async def start(self) -> None:
        self.listener.on_partitions_assigned({_EVIL, _GOOD})

    async def stop(self) -> None: ...

    def assignment(self) -> set[TopicPartition]:
        return {_EVIL, _GOOD}

    def paused(self) -> set[TopicPartition]:
        return self.stopped

    def pause(self, tp: TopicPartition) -> None:
        self.stopped.add(tp)

    def resume(self, tp: TopicPartition) -> None:
        self.stopped.discard(tp)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.positions[tp] = offset

    async def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        if self.refuses:
            raise CommitFailedError()
        self.commits.append(offsets)

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        for tp in (_EVIL, _GOOD):
            if tp.topic in self.denied and tp not in self.stopped:
                raise TopicAuthorizationFailedError(tp.topic)
        return {tp: [] for tp in (_EVIL, _GOOD) if tp not in self.stopped}


@pytest.fixture
async def consumer(monkeypatch: pytest.MonkeyPatch) -> _Consumer:
    async def marks(
        settings: Settings, group: str, wanted: Collection[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        return {_EVIL: OffsetAndMetadata(-1, ""), _GOOD: OffsetAndMetadata(7, "note")}

    consumer = _Consumer()
    monkeypatch.setattr(group_reader, "AIOKafkaConsumer", consumer)
    monkeypatch.setattr(group_reader, "committed_marks", marks)
    return consumer


async def started() -> GroupReader:
    reader = GroupReader(Settings(), "test", pattern="evil|good")
    await reader.start()
    return reader


async def test_a_topic_that_may_not_be_read_is_left_out_and_asked_for_again(
    consumer: _Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer.denied.add("evil")
    reader = await started()
    assert await reader.poll(0) == {}
    assert list(await reader.poll(0)) == [TopicPart("good", 0)]
    consumer.denied.clear()
    monkeypatch.setattr(group_reader, "_BARRED_S", 0.0)
    assert set(await reader.poll(0)) == {TopicPart("good", 0), TopicPart("evil", 0)}


async def test_a_reader_of_one_topic_says_that_it_may_not(consumer: _Consumer) -> None:
    consumer.denied.add("evil")
    reader = GroupReader(Settings(), "test", topics=["evil"])
    await reader.start()
    with pytest.raises(KafkaBaseError):
        await reader.poll(0)


async def test_reading_begins_at_the_commit_or_at_the_beginning(consumer: _Consumer) -> None:
    reader = await started()
    await reader.poll(0)
    assert consumer.positions == {_EVIL: 0, _GOOD: 7}
    assert reader.held()[TopicPart("good", 0)].note == "note"


async def test_only_who_has_a_partition_since_then_commits_it(consumer: _Consumer) -> None:
    reader, part = await started(), TopicPart("good", 0)
    await reader.poll(0)
    before = reader.held()[part].since
    assert await reader.commit(part, before, Mark(8, "8"))
    consumer.listener.on_partitions_revoked({_GOOD})
    assert not await reader.commit(part, before, Mark(9))
    consumer.listener.on_partitions_assigned({_EVIL, _GOOD})
    await reader.poll(0)
    assert not await reader.commit(part, before, Mark(9))
    assert await reader.commit(part, reader.held()[part].since, Mark(10))
    assert [c[_GOOD].offset for c in consumer.commits] == [8, 10]


async def test_a_commit_that_the_group_refuses_is_said_to_be_none(consumer: _Consumer) -> None:
    reader, part = await started(), TopicPart("good", 0)
    await reader.poll(0)
    consumer.refuses = True
    assert not await reader.commit(part, reader.held()[part].since, Mark(8))
