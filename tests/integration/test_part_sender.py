"""What follows from a partition is there with how far it was read, or not: fake and broker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import NamedTuple

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from api.bridge.delivery import Sender
from api.bridge.sender_fake import FakeSenders
from schemas.topics import BATCH_OUT, BATCH_STATUS, Topic
from streams.kafka import exact
from streams.kafka.admin import apply_topics
from streams.kafka.errors import Fenced, KafkaBaseError, RecordTooLarge, SendFailed, TopicMissing
from streams.kafka.exact import part_sender
from streams.kafka.group_reader import Mark, TopicPart
from streams.settings import Settings
from tests.support.bridge import make_topics
from tests.support.brokers import TestBroker, delete_topics

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka]

_TOPIC = BATCH_OUT.of("acme")
_KEY = b"k"


class World(NamedTuple):
    """open: a sender for the partition. seen: the values that readers of what is committed see."""

    open: Callable[[], AbstractAsyncContextManager[Sender]]
    seen: Callable[[], Awaitable[list[bytes]]]


@pytest.fixture(params=["fake", "broker"])
async def world(request: pytest.FixtureRequest) -> World:
    if request.param == "fake":
        senders = FakeSenders()
        senders.missing.add(BATCH_OUT.of("gone").name)
        part = TopicPart("status", 0)

        async def records() -> list[bytes]:
            return [record.value for record in senders.records]

        return World(lambda: senders.open(part), records)
    settings: Settings = request.getfixturevalue("kafka_settings")
    await apply_topics(settings, topics=[BATCH_STATUS])
    await make_topics(settings)
    return World(lambda: open_sender(settings), lambda: committed(settings))


def open_sender(settings: Settings) -> AbstractAsyncContextManager[Sender]:
    part = TopicPart(BATCH_STATUS.full_name(settings.topic_prefix), 0)
    return part_sender(settings, "test", part)


async def committed(settings: Settings) -> list[bytes]:
    """The values on partition 0 up to its present end."""
    tp = TopicPartition(_TOPIC.full_name(settings.topic_prefix), 0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        consumer.assign([tp])
        end = (await consumer.end_offsets([tp]))[tp]
        found: list[bytes] = []
        while await consumer.position(tp) < end:
            for records in (await consumer.getmany(tp, timeout_ms=100)).values():
                found += [record.value for record in records]
        return found
    finally:
        await consumer.stop()


async def send(sender: Sender, value: bytes, topic: Topic = _TOPIC) -> None:
    await sender.send(topic, 0, _KEY, value, [("h", b"v")])


async def test_a_commit_shows_what_was_sent_and_is_where_the_next_one_goes_on(world: World) -> None:
    async with world.open() as sender:
        assert await sender.mark() is None
        assert await sender.partitions(_TOPIC) == _TOPIC.partitions
        for n in range(50):
            await send(sender, b"%d" % n)
        await sender.commit(Mark(7, '{"next":50}'))
        await sender.commit(Mark(8, "nothing was sent"))
    assert await world.seen() == [b"%d" % n for n in range(50)]
    async with world.open() as sender:
        assert await sender.mark() == Mark(8, "nothing was sent")


async def test_what_was_not_committed_is_never_seen(world: World) -> None:
    async with world.open() as sender:
        await send(sender, b"seen")
        await sender.commit(Mark(1))
        await send(sender, b"dropped")
    async with world.open() as sender:
        assert await sender.mark() == Mark(1)
        await send(sender, b"again")
        await sender.commit(Mark(2))
    assert await world.seen() == [b"seen", b"again"]


async def test_a_sender_that_was_replaced_can_commit_nothing(world: World) -> None:
    async with world.open() as paused:
        await send(paused, b"of the paused one")
        async with world.open() as sender:
            assert await sender.mark() is None
            await send(sender, b"of the new one")
            await sender.commit(Mark(1))
            with pytest.raises(Fenced):
                await paused.commit(Mark(1))
            await send(sender, b"more")
            await sender.commit(Mark(2))
    assert await world.seen() == [b"of the new one", b"more"]


async def test_a_topic_that_is_not_there_is_told_by_name(world: World) -> None:
    async with world.open() as sender:
        with pytest.raises(TopicMissing, match="gone"):
            await sender.partitions(BATCH_OUT.of("gone"))
        await send(sender, b"to another")
        await sender.commit(Mark(1))
    assert await world.seen() == [b"to another"]


@pytest.fixture
async def settings(kafka_settings: Settings) -> Settings:
    await apply_topics(kafka_settings, topics=[BATCH_STATUS])
    await make_topics(kafka_settings)
    return kafka_settings


async def test_a_record_that_is_too_large_is_refused_before_it_is_sent(settings: Settings) -> None:
    async with open_sender(settings) as sender:
        await send(sender, b"small")
        with pytest.raises(RecordTooLarge):
            await send(sender, b"x" * 5 * 1024 * 1024)


async def test_a_topic_deleted_under_way_ends_the_sender_in_bounded_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with suppress(KafkaBaseError), monkeypatch.context() as patch:
        async with open_sender(settings) as sender:
            await send(sender, b"one")
            await sender.commit(Mark(1))
            patch.setattr(exact, "_TAKE_WITHIN_S", 2.0)
            patch.setattr(exact, "_END_WITHIN_S", 1.0)
            await delete_topics(settings.kafka, settings.topic_prefix + ".batch-out")
            await send(sender, b"two")
            await sender.commit(Mark(2))
            raise AssertionError("nobody took the record")
    async with open_sender(settings) as sender:
        assert await sender.mark() == Mark(1)
        with pytest.raises(TopicMissing):
            await sender.partitions(_TOPIC)


async def test_a_broker_that_stops_answering_ends_the_sender_in_bounded_time(
    kafka_broker: TestBroker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = kafka_broker.broker.pids
    if not pids:
        pytest.skip("the broker is no process of ours that could be stopped")
    try:
        with monkeypatch.context() as patch:
            async with asyncio.timeout(60):
                with suppress(SendFailed):
                    await send_to_stopped(pids, settings, patch)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    async with open_sender(settings) as later:
        assert await later.mark() == Mark(1)
        await send(later, b"two")
        await later.commit(Mark(2))
    assert await committed(settings) == [b"one", b"two"]


async def send_to_stopped(
    pids: Sequence[int], settings: Settings, patch: pytest.MonkeyPatch
) -> None:
    async with open_sender(settings) as sender:
        await send(sender, b"one")
        await sender.commit(Mark(1))
        patch.setattr(exact, "_TAKE_WITHIN_S", 1.0)
        patch.setattr(exact, "_END_WITHIN_S", 0.5)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await send(sender, b"to nobody")
        await sender.commit(Mark(2))
        raise AssertionError("nobody took the record")
