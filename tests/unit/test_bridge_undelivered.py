"""Results that can't be delivered: what is waited for, what is given up, and what the end says."""

from __future__ import annotations

import json

import pytest

from api.bridge.patience import Patience
from schemas.errors import Undelivered
from schemas.headers import BATCH_ID
from schemas.topics import BATCH_OUT
from streams.kafka.errors import (
    BrokerUnreachable,
    KafkaBaseError,
    RecordTooLarge,
    TopicMissing,
)
from streams.kafka.producer import MAX_VALUE_BYTES
from tests.support.deliveries import PART, World, ended_batch_later, quick_world
from tests.support.results import ended_batch, result_line
from tests.support.waiting import eventually


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return quick_world(monkeypatch)


async def test_a_line_no_record_has_room_for_is_told_with_where_it_is(world: World) -> None:
    batch = await ended_batch(world.store, "batch_a", 3, sizes={1: MAX_VALUE_BYTES})
    world.tell(batch)
    async with world.running():
        await eventually(world.end)
    assert world.told() == [("output", 0), ("too_large", 1), ("output", 2), ("end", None)]
    told = json.loads(world.senders.records[1].value)
    assert told == {
        "id": told["id"],
        "custom_id": "c-1",
        "size_bytes": len(result_line("batch_a", 1, MAX_VALUE_BYTES)),
        "file_id": batch.output_file_id,
    }
    assert world.end()["results"]["sent"] == 3


async def test_a_missing_topic_is_given_up_and_the_next_batch_gets_its_turn(world: World) -> None:
    world.senders.missing.add(BATCH_OUT.of("gone").name)
    gone = [await ended_batch(world.store, f"batch_g{n}", 2, tenant="gone") for n in range(5)]
    world.tell(*gone, await ended_batch(world.store, "batch_a", 2))
    async with world.running():
        await eventually(lambda: world.incomplete("topic_missing") == 5 and world.end())
    assert {dict(r.headers)[BATCH_ID] for r in world.senders.records} == {b"batch_a"}
    # Three tries of the first batch; the others are passed over at their first one.
    assert world.senders.opened[PART, "gone"] == 3


async def test_a_topic_that_appears_in_time_gets_its_results(world: World) -> None:
    world.senders.fail("partitions", TopicMissing("not yet"), times=2)
    world.tell(await ended_batch(world.store, "batch_a", 1))
    async with world.running():
        await eventually(world.end)
    assert world.incomplete("topic_missing") == 0


@pytest.mark.parametrize("error", [KafkaBaseError("not authorized"), RecordTooLarge("key")])
async def test_records_that_the_broker_refuses_are_given_up(
    world: World, error: KafkaBaseError
) -> None:
    world.senders.fail("send", error, times=5)
    world.tell(
        await ended_batch(world.store, "batch_bad", 1), await ended_batch(world.store, "batch_a", 1)
    )
    async with world.running():
        await eventually(world.end)
    assert world.told("batch_bad") == []
    assert world.incomplete("topic_refused") == 1


def test_every_try_waits_longer_also_once_a_batch_was_given_up() -> None:
    patience = Patience()
    for _ in range(5):
        patience.failed(KafkaBaseError("refused"))
    assert patience.gives_up is Undelivered.TOPIC_REFUSED
    waits = [patience.pause() for _ in range(8)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


async def test_each_batch_is_tried_as_often_as_the_one_before(world: World) -> None:
    async with world.running():
        for batch_id in ("batch_a", "batch_b"):
            world.senders.fail("send", KafkaBaseError("odd"), times=4)
            world.tell(await ended_batch(world.store, batch_id, 1))
            await eventually(lambda: not world.behind())
    assert world.told("batch_b") == [("output", 0), ("end", None)]
    assert world.incomplete("topic_refused") == 0


async def test_a_broker_that_is_away_is_waited_for(world: World) -> None:
    world.senders.fail("commit", BrokerUnreachable("away"), times=50)
    world.tell(await ended_batch(world.store, "batch_a", 1))
    async with world.running():
        await eventually(world.end)
    assert world.told() == [("output", 0), ("end", None)]


async def test_trouble_with_its_sender_costs_no_batch(world: World) -> None:
    world.senders.fail("open", KafkaBaseError("odd"), times=50)
    world.tell(await ended_batch(world.store, "batch_a", 1))
    async with world.running():
        await eventually(world.end)
    assert world.told() == [("output", 0), ("end", None)]


async def test_the_end_says_that_a_file_is_gone_and_the_other_one_is_sent(world: World) -> None:
    batch = await ended_batch(world.store, "batch_a", 4, failed=[1, 2])
    assert batch.output is not None
    await world.store.delete(batch.output.key)
    world.tell(batch)
    async with world.running():
        end = await eventually(world.end)
    assert world.told() == [("error", 1), ("error", 2), ("end", None)]
    assert end["results"] == {"sent": 2, "missing": 2, "reason": "file_gone"}
    assert world.incomplete("file_gone") == 1


async def test_the_end_says_how_many_lines_are_in_neither_file(world: World) -> None:
    world.tell(await ended_batch(world.store, "batch_a", 4, missing=[1]))
    async with world.running():
        end = await eventually(world.end)
    assert world.told() == [("output", 0), ("output", 2), ("output", 3), ("end", None)]
    assert end["results"] == {"sent": 3, "missing": 1, "reason": "lines_missing"}


async def test_a_store_that_is_down_is_waited_for_and_a_broken_file_is_not(world: World) -> None:
    world.store.fail(30)
    world.tell(await ended_batch_later(world, "batch_a"))
    broken = await ended_batch_later(world, "batch_b")
    assert broken.output is not None
    world.store.broken.add(broken.output.key)
    world.tell(broken)
    async with world.running():
        await eventually(lambda: world.end("batch_b"))
    assert world.told() == [("output", 0), ("end", None)]
    assert world.end("batch_b")["results"] == {
        "sent": 0,
        "missing": 1,
        "reason": "file_unreadable",
    }
