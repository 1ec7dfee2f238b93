"""Results on their way to tenants: in order, once, whoever takes over, and how much waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api.bridge import delivery, lane_out
from api.bridge import outbound as module
from api.bridge import patience as patience_module
from schemas.codec import encode
from schemas.headers import BATCH_ID, KIND
from schemas.partitions import partition_for
from schemas.records import BatchError, BatchStatus
from schemas.topics import BATCH_OUT
from streams.kafka.errors import (
    BrokerUnreachable,
    Fenced,
    KafkaBaseError,
)
from streams.kafka.group_reader import Mark, TopicPart
from tests.support.deliveries import OWN, PART, World, changed, quick_world
from tests.support.results import ended_batch, result_line
from tests.support.waiting import eventually


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return quick_world(monkeypatch)


async def test_results_come_in_order_as_they_stand_in_their_files_and_then_the_end(
    world: World,
) -> None:
    world.tell(await ended_batch(world.store, "batch_a", 5, failed=[1, 3]))
    async with world.running():
        end = await eventually(world.end)
    assert world.told() == [
        ("output", 0),
        ("error", 1),
        ("output", 2),
        ("error", 3),
        ("output", 4),
        ("end", None),
    ]
    *lines, _ = world.senders.records
    assert [r.value for r in lines] == [result_line("batch_a", n) for n in range(5)]
    assert {(r.topic, r.key) for r in lines} == {(BATCH_OUT.of("acme").name, b"nightly")}
    assert {r.partition for r in world.senders.records} == {partition_for("nightly", 4)}
    assert end == {
        "id": "batch_a",
        "object": "batch",
        "status": "completed",
        "request_counts": {"total": 5, "completed": 3, "failed": 2},
        "usage": end["usage"],
        "output_file_id": "file-output-batch_a",
        "error_file_id": "file-error-batch_a",
        "errors": None,
        "results": {"sent": 5, "missing": 0, "reason": None},
    }
    assert end["usage"]["total_tokens"] == 20


async def test_batches_that_run_or_came_over_http_or_cannot_be_read_are_passed_over(
    world: World,
) -> None:
    running = await ended_batch(world.store, "batch_runs", 1, status=BatchStatus.FINALIZING)
    world.tell(running, await ended_batch(world.store, "batch_http", 1, key=None))
    world.statuses.log[PART].append(b"no record of ours")
    world.tell(await ended_batch(world.store, "batch_a", 1))
    async with world.running():
        await eventually(world.end)
    assert {dict(r.headers)[BATCH_ID] for r in world.senders.records} == {b"batch_a"}


async def test_what_ended_before_the_topic_forgets_is_not_delivered_any_more(world: World) -> None:
    old = await ended_batch(world.store, "batch_old", 1)
    world.clock.advance(7 * 86_400)
    ended_ms = world.clock.now_ms() - 1000
    fresh = changed(await ended_batch(world.store, "batch_a", 1), completed_at_ms=ended_ms)
    world.tell(old, fresh)
    async with world.running():
        await eventually(world.end)
    assert world.told("batch_old") == []


@pytest.mark.parametrize("status", ["failed", "expired", "cancelled"])
async def test_a_batch_that_ends_in_any_way_is_told(world: World, status: str) -> None:
    batch = await ended_batch(world.store, "batch_a", 0, status=BatchStatus(status))
    error = BatchError(code="empty_file", message="The input file has no lines.")
    world.tell(changed(batch, errors=(error,)))
    async with world.running():
        end = await eventually(world.end)
    assert end["status"] == status
    assert end["errors"]["data"][0]["code"] == "empty_file"
    assert world.told() == [("end", None)]


async def test_a_batch_told_twice_is_delivered_once_also_by_who_takes_over(world: World) -> None:
    batch = await ended_batch(world.store, "batch_a", 2)
    world.tell(batch, batch)
    async with world.running():
        await eventually(lambda: not world.behind())
    world.statuses.give(PART)
    world.tell(batch, await ended_batch(world.store, "batch_b", 1))
    async with world.running():
        await eventually(lambda: world.end("batch_b"))
    assert world.told() == [("output", 0), ("output", 1), ("end", None)]


@pytest.mark.parametrize("call", ["send", "commit"])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_a_failure_at_any_time_neither_loses_nor_repeats_a_line(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    monkeypatch.setattr("api.bridge.delivery._PIECE_LINES", 2)
    world.senders.fail(call, Fenced("another one"), after=after)
    world.tell(await ended_batch(world.store, "batch_a", 7, failed=[2]))
    async with world.running():
        await eventually(world.end)
    assert world.told() == [
        *(("error" if n == 2 else "output", n) for n in range(7)),
        ("end", None),
    ]
    assert world.end()["results"] == {"sent": 7, "missing": 0, "reason": None}
    assert world.senders.opened[OWN] == 2


@pytest.mark.parametrize(
    ("limit", "most"), [("_PIECE_LINES", 10), ("_PIECE_BYTES", 10 * len(result_line("batch_a", 9)))]
)
async def test_a_long_batch_is_committed_in_pieces(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(f"api.bridge.delivery.{limit}", most)
    world.tell(await ended_batch(world.store, "batch_a", 95))
    async with world.running():
        await eventually(world.end)
    assert world.senders.commits[OWN] == 10


async def test_a_rebalance_in_mid_batch_goes_on_where_it_was_committed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.bridge.delivery._PIECE_LINES", 10)
    world.senders.hold[OWN] = 4
    world.tell(await ended_batch(world.store, "batch_a", 100))
    async with world.running() as outbound:
        await eventually(lambda: world.senders.commits[OWN] == 4)
        world.statuses.give()
        await eventually(lambda: not list(outbound._lanes))
        world.senders.hold.clear()
        world.statuses.give(PART)
        await eventually(world.end)
    assert world.told() == [*(("output", n) for n in range(100)), ("end", None)]
    assert world.senders.opened[OWN] == 2


async def test_what_an_earlier_reading_had_come_to_is_not_committed_for_a_later_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COMMIT_S", 0.0)
    world.tell(await ended_batch(world.store, "batch_http", 1, key=None))
    outbound = world.outbound()
    try:
        await outbound.step(0)
        assert world.statuses.commits.pop(PART) == Mark(1)
        world.tell(await ended_batch(world.store, "batch_http2", 1, key=None))

        def given_anew() -> Iterator[KafkaBaseError]:
            world.statuses.give(PART)
            yield from ()

        world.statuses.fails = given_anew()
        await outbound.step(0)
        assert PART not in world.statuses.commits
        # Read anew, it is committed though it is no further than before.
        await outbound.step(0)
        assert world.statuses.commits[PART] == Mark(2)
    finally:
        await outbound.stop()


async def test_a_partition_that_is_given_anew_is_taken_over_anew(world: World) -> None:
    world.senders.hold[OWN] = 0
    world.tell(await ended_batch(world.store, "batch_a", 1))
    async with world.running():
        await eventually(lambda: world.senders.opened[OWN] == 1)
        world.statuses.give(PART)
        await eventually(lambda: world.senders.opened[OWN] == 2)


async def test_what_another_process_committed_just_before_it_was_shut_out_counts(
    world: World,
) -> None:
    world.tell(await ended_batch(world.store, "batch_a", 1))
    world.tell(await ended_batch(world.store, "batch_b", 1))
    # The group's reader was told to begin at 0, and by the time a sender is opened it is 1.
    world.senders.marks[OWN] = Mark(1)
    async with world.running():
        await eventually(lambda: world.end("batch_b"))
    assert world.told("batch_a") == []


async def test_of_a_flood_only_so_much_waits_in_memory_and_all_of_it_is_delivered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood = [await ended_batch(world.store, f"batch_{n}", 1) for n in range(50)]
    monkeypatch.setattr(lane_out, "_LANE_BYTES", 5 * len(encode(flood[0])))
    world.senders.hold[OWN] = 0
    world.tell(*flood)
    world.tell(await ended_batch(world.store, "batch_other", 1, tenant="other"))
    async with world.running() as outbound:
        # Nothing of the flood gets on, and who stands behind it does.
        await eventually(lambda: world.end("batch_other"))
        lanes = [lane for part in outbound._lanes for lane in part._tenants.values()]
        assert max(len(lane._waiting) for lane in lanes) <= 5
        world.senders.hold.clear()
        world.statuses.give(PART)
        await eventually(lambda: not world.behind())
    ends = [r for r in world.senders.records if dict(r.headers)[KIND] == b"end"]
    own = [dict(r.headers)[BATCH_ID] for r in ends if r.topic == BATCH_OUT.of("acme").name]
    assert own == [batch.batch_id.encode() for batch in flood]
    assert 9 <= world.statuses.again <= 20


async def test_of_floods_of_many_tenants_only_so_much_waits_in_memory_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = [f"t{n}" for n in range(5)]
    floods = [
        await ended_batch(world.store, f"batch_{tenant}_{n}", 1, tenant=tenant)
        for n in range(10)
        for tenant in tenants
    ]
    monkeypatch.setattr(lane_out, "_MAX_WAITING_BYTES", 15 * len(encode(floods[0])))
    for tenant in tenants:
        world.senders.hold[PART, tenant] = 0
    world.tell(*floods)
    async with world.running() as outbound:
        await eventually(lambda: world.statuses.at[PART] == len(floods))
        lanes = [lane for part in outbound._lanes for lane in part._tenants.values()]
        # One of each lane always may.
        assert sum(len(lane._waiting) for lane in lanes) <= 15 + len(tenants)
        world.senders.hold.clear()
        world.statuses.give(PART)
        await eventually(lambda: not world.behind())
        assert outbound._room.used_bytes == 0
    ends = [r for r in world.senders.records if dict(r.headers)[KIND] == b"end"]
    assert len(ends) == len(floods)


async def test_a_topic_that_takes_nothing_holds_no_other_tenant_and_loses_and_repeats_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience_module, "_TRIES_OF_A_SLOW_BROKER", 10**6)
    world.senders.stuck.add(BATCH_OUT.of("ill").name)
    for n in range(10):
        world.tell(await ended_batch(world.store, f"batch_i{n}", 2, tenant="ill"))
        world.tell(await ended_batch(world.store, f"batch_{n}", 2))
    async with world.running():
        await eventually(lambda: world.end("batch_9"))
    assert world.behind()
    world.senders.stuck.clear()
    world.statuses.give(PART)
    async with world.running():
        await eventually(lambda: not world.behind())
    for n in range(10):
        expected = [("output", 0), ("output", 1), ("end", None)]
        assert world.told(f"batch_{n}") == world.told(f"batch_i{n}") == expected


async def test_what_a_topic_did_not_take_for_as_long_as_it_keeps_records_is_passed_over(
    world: World,
) -> None:
    world.senders.fail("open", BrokerUnreachable("no leader"), times=10**6)
    world.tell(await ended_batch(world.store, "batch_a", 1))
    async with world.running():
        await eventually(lambda: len(world.senders._failures) < 10**6)
        assert world.behind()
        world.clock.advance(7 * 86_400)
        await eventually(lambda: not world.behind())
    assert world.incomplete("topic_refused") == 1


async def test_a_half_delivered_batch_goes_on_also_where_only_a_later_telling_of_it_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_PIECE_LINES", 10)
    world.senders.hold[OWN] = 4
    batch = await ended_batch(world.store, "batch_a", 100)
    world.tell(batch)
    async with world.running():
        await eventually(lambda: world.senders.commits[OWN] == 4)
    world.senders.hold.clear()
    world.statuses.compacted.add(0)
    world.tell(await ended_batch(world.store, "batch_b", 35), batch)
    world.statuses.give(PART)
    async with world.running():
        await eventually(world.end)
    assert world.told() == [*(("output", n) for n in range(100)), ("end", None)]
    assert world.told("batch_b") == [*(("output", n) for n in range(35)), ("end", None)]


async def test_a_batch_that_ends_in_the_very_turn_of_the_commit_is_not_passed_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COMMIT_S", 0.0)
    world.senders.hold[OWN] = 0
    world.tell(await ended_batch(world.store, "batch_http", 1, key=None))
    outbound = world.outbound()
    await outbound.step(0.001)
    assert world.statuses.commits[PART].offset == 1
    # It comes, nothing has begun to deliver it, and the commit is due.
    world.tell(await ended_batch(world.store, "batch_a", 1))
    await outbound.step(0.001)
    assert world.statuses.commits[PART].offset == 1
    # It is being delivered when the next one is due.
    await eventually(lambda: world.senders.opened[OWN] == 1)
    await outbound.step(0.001)
    await outbound.stop()
    world.senders.hold.clear()
    world.statuses.give(PART)
    async with world.running():
        await eventually(world.end)
    assert world.told() == [("output", 0), ("end", None)]


async def test_how_far_was_read_is_committed_where_nothing_is_to_be_delivered(
    world: World,
) -> None:
    for _ in range(3):
        world.tell(await ended_batch(world.store, "batch_http", 1, key=None))
    world.statuses.fails = iter([KafkaBaseError("odd")] * 3)
    async with world.running():
        await eventually(lambda: not world.behind())
    assert world.senders.opened == {}
    assert world.senders.records == []


async def test_partitions_do_not_wait_for_each_other(world: World) -> None:
    other = TopicPart(PART.topic, 1)
    world.statuses.give(PART, other)
    world.senders.hold[OWN] = 0
    world.tell(await ended_batch(world.store, "batch_b", 1))
    world.tell(await ended_batch(world.store, "batch_a", 1), part=other)
    async with world.running():
        await eventually(world.end)
    assert world.told("batch_b") == []
