"""Results on their way to tenants: what is sent, what is repeated, and what is given up."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from api.bridge import delivery, lane_out
from api.bridge import outbound as module
from api.bridge import patience as patience_module
from api.bridge.lane_out import LaneParts
from api.bridge.outbound import Outbound
from api.bridge.patience import Patience
from api.bridge.sender_fake import FakeSenders
from schemas.codec import encode
from schemas.errors import Undelivered
from schemas.headers import BATCH_ID, KIND, LINE
from schemas.metrics import Metrics
from schemas.partitions import partition_for
from schemas.records import BatchError, BatchSnapshot, BatchStatus
from schemas.topics import BATCH_OUT
from streams.adapters.object_store_fake import FakeObjectStore
from streams.domain.clock import ManualClock
from streams.kafka.errors import (
    BrokerUnreachable,
    Fenced,
    KafkaBaseError,
    RecordTooLarge,
    TopicMissing,
)
from streams.kafka.group_reader import Held, Mark, TopicPart
from streams.kafka.producer import MAX_VALUE_BYTES
from tests.support.results import ENDED_MS, ended_batch, result_line
from tests.support.waiting import eventually

_PART = TopicPart("backhaul.batch.status.v1", 0)
_OWN = (_PART, "acme")
#: Records of a partition that come with one poll.
_POLLED = 10


class _Statuses:
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


class _World:
    """The writing half on fakes."""

    def __init__(self) -> None:
        self.senders = FakeSenders()
        self.statuses = _Statuses()
        self.store = FakeObjectStore()
        self.clock = ManualClock(ENDED_MS)
        self.metrics = Metrics()
        self.statuses.give(_PART)

    def tell(self, *batches: BatchSnapshot, part: TopicPart = _PART) -> None:
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
        mark = self.statuses.commits.get(_PART, Mark(0))
        return mark.offset < len(self.statuses.log[_PART])

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


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> _World:
    monkeypatch.setattr(patience_module, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(patience_module, "_LONGEST_PAUSE_S", 0.002)
    monkeypatch.setattr(module, "_COMMIT_S", 0.05)
    return _World()


async def test_results_come_in_order_as_they_stand_in_their_files_and_then_the_end(
    world: _World,
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
    world: _World,
) -> None:
    running = await ended_batch(world.store, "batch_runs", 1, status=BatchStatus.FINALIZING)
    world.tell(running, await ended_batch(world.store, "batch_http", 1, key=None))
    world.statuses.log[_PART].append(b"no record of ours")
    world.tell(await ended_batch(world.store, "batch_a", 1))
    async with world.running():
        await eventually(world.end)
    assert {dict(r.headers)[BATCH_ID] for r in world.senders.records} == {b"batch_a"}


async def test_what_ended_before_the_topic_forgets_is_not_delivered_any_more(world: _World) -> None:
    old = await ended_batch(world.store, "batch_old", 1)
    world.clock.advance(7 * 86_400)
    ended_ms = world.clock.now_ms() - 1000
    fresh = _with(await ended_batch(world.store, "batch_a", 1), completed_at_ms=ended_ms)
    world.tell(old, fresh)
    async with world.running():
        await eventually(world.end)
    assert world.told("batch_old") == []


@pytest.mark.parametrize("status", ["failed", "expired", "cancelled"])
async def test_a_batch_that_ends_in_any_way_is_told(world: _World, status: str) -> None:
    batch = await ended_batch(world.store, "batch_a", 0, status=BatchStatus(status))
    error = BatchError(code="empty_file", message="The input file has no lines.")
    world.tell(_with(batch, errors=(error,)))
    async with world.running():
        end = await eventually(world.end)
    assert end["status"] == status
    assert end["errors"]["data"][0]["code"] == "empty_file"
    assert world.told() == [("end", None)]


async def test_a_batch_told_twice_is_delivered_once_also_by_who_takes_over(world: _World) -> None:
    batch = await ended_batch(world.store, "batch_a", 2)
    world.tell(batch, batch)
    async with world.running():
        await eventually(lambda: not world.behind())
    world.statuses.give(_PART)
    world.tell(batch, await ended_batch(world.store, "batch_b", 1))
    async with world.running():
        await eventually(lambda: world.end("batch_b"))
    assert world.told() == [("output", 0), ("output", 1), ("end", None)]


@pytest.mark.parametrize("call", ["send", "commit"])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_a_failure_at_any_time_neither_loses_nor_repeats_a_line(
    world: _World, monkeypatch: pytest.MonkeyPatch, call: str, after: int
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
    assert world.senders.opened[_OWN] == 2


@pytest.mark.parametrize(
    ("limit", "most"), [("_PIECE_LINES", 10), ("_PIECE_BYTES", 10 * len(result_line("batch_a", 9)))]
)
async def test_a_long_batch_is_committed_in_pieces(
    world: _World, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(f"api.bridge.delivery.{limit}", most)
    world.tell(await ended_batch(world.store, "batch_a", 95))
    async with world.running():
        await eventually(world.end)
    assert world.senders.commits[_OWN] == 10


async def test_a_rebalance_in_mid_batch_goes_on_where_it_was_committed(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.bridge.delivery._PIECE_LINES", 10)
    world.senders.hold[_OWN] = 4
    world.tell(await ended_batch(world.store, "batch_a", 100))
    async with world.running() as outbound:
        await eventually(lambda: world.senders.commits[_OWN] == 4)
        world.statuses.give()
        await eventually(lambda: not list(outbound._lanes))
        world.senders.hold.clear()
        world.statuses.give(_PART)
        await eventually(world.end)
    assert world.told() == [*(("output", n) for n in range(100)), ("end", None)]
    assert world.senders.opened[_OWN] == 2


async def test_what_an_earlier_reading_had_come_to_is_not_committed_for_a_later_one(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COMMIT_S", 0.0)
    world.tell(await ended_batch(world.store, "batch_http", 1, key=None))
    outbound = world.outbound()
    try:
        await outbound.step(0)
        assert world.statuses.commits.pop(_PART) == Mark(1)
        world.tell(await ended_batch(world.store, "batch_http2", 1, key=None))

        def given_anew() -> Iterator[KafkaBaseError]:
            world.statuses.give(_PART)
            yield from ()

        world.statuses.fails = given_anew()
        await outbound.step(0)
        assert _PART not in world.statuses.commits
        # Read anew, it is committed though it is no further than before.
        await outbound.step(0)
        assert world.statuses.commits[_PART] == Mark(2)
    finally:
        await outbound.stop()


async def test_a_partition_that_is_given_anew_is_taken_over_anew(world: _World) -> None:
    world.senders.hold[_OWN] = 0
    world.tell(await ended_batch(world.store, "batch_a", 1))
    async with world.running():
        await eventually(lambda: world.senders.opened[_OWN] == 1)
        world.statuses.give(_PART)
        await eventually(lambda: world.senders.opened[_OWN] == 2)


async def test_what_another_process_committed_just_before_it_was_shut_out_counts(
    world: _World,
) -> None:
    world.tell(await ended_batch(world.store, "batch_a", 1))
    world.tell(await ended_batch(world.store, "batch_b", 1))
    # The group's reader was told to begin at 0, and by the time a sender is opened it is 1.
    world.senders.marks[_OWN] = Mark(1)
    async with world.running():
        await eventually(lambda: world.end("batch_b"))
    assert world.told("batch_a") == []


async def test_of_a_flood_only_so_much_waits_in_memory_and_all_of_it_is_delivered(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood = [await ended_batch(world.store, f"batch_{n}", 1) for n in range(50)]
    monkeypatch.setattr(lane_out, "_LANE_BYTES", 5 * len(encode(flood[0])))
    world.senders.hold[_OWN] = 0
    world.tell(*flood)
    world.tell(await ended_batch(world.store, "batch_other", 1, tenant="other"))
    async with world.running() as outbound:
        # Nothing of the flood gets on, and who stands behind it does.
        await eventually(lambda: world.end("batch_other"))
        lanes = [lane for part in outbound._lanes for lane in part._tenants.values()]
        assert max(len(lane._waiting) for lane in lanes) <= 5
        world.senders.hold.clear()
        world.statuses.give(_PART)
        await eventually(lambda: not world.behind())
    ends = [r for r in world.senders.records if dict(r.headers)[KIND] == b"end"]
    own = [dict(r.headers)[BATCH_ID] for r in ends if r.topic == BATCH_OUT.of("acme").name]
    assert own == [batch.batch_id.encode() for batch in flood]
    assert 9 <= world.statuses.again <= 20


async def test_of_floods_of_many_tenants_only_so_much_waits_in_memory_together(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = [f"t{n}" for n in range(5)]
    floods = [
        await ended_batch(world.store, f"batch_{tenant}_{n}", 1, tenant=tenant)
        for n in range(10)
        for tenant in tenants
    ]
    monkeypatch.setattr(lane_out, "_MAX_WAITING_BYTES", 15 * len(encode(floods[0])))
    for tenant in tenants:
        world.senders.hold[_PART, tenant] = 0
    world.tell(*floods)
    async with world.running() as outbound:
        await eventually(lambda: world.statuses.at[_PART] == len(floods))
        lanes = [lane for part in outbound._lanes for lane in part._tenants.values()]
        # One of each lane always may.
        assert sum(len(lane._waiting) for lane in lanes) <= 15 + len(tenants)
        world.senders.hold.clear()
        world.statuses.give(_PART)
        await eventually(lambda: not world.behind())
        assert outbound._room.used_bytes == 0
    ends = [r for r in world.senders.records if dict(r.headers)[KIND] == b"end"]
    assert len(ends) == len(floods)


async def test_a_topic_that_takes_nothing_holds_no_other_tenant_and_loses_and_repeats_nothing(
    world: _World, monkeypatch: pytest.MonkeyPatch
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
    world.statuses.give(_PART)
    async with world.running():
        await eventually(lambda: not world.behind())
    for n in range(10):
        expected = [("output", 0), ("output", 1), ("end", None)]
        assert world.told(f"batch_{n}") == world.told(f"batch_i{n}") == expected


async def test_what_a_topic_did_not_take_for_as_long_as_it_keeps_records_is_passed_over(
    world: _World,
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
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_PIECE_LINES", 10)
    world.senders.hold[_OWN] = 4
    batch = await ended_batch(world.store, "batch_a", 100)
    world.tell(batch)
    async with world.running():
        await eventually(lambda: world.senders.commits[_OWN] == 4)
    world.senders.hold.clear()
    world.statuses.compacted.add(0)
    world.tell(await ended_batch(world.store, "batch_b", 35), batch)
    world.statuses.give(_PART)
    async with world.running():
        await eventually(world.end)
    assert world.told() == [*(("output", n) for n in range(100)), ("end", None)]
    assert world.told("batch_b") == [*(("output", n) for n in range(35)), ("end", None)]


async def test_a_batch_that_ends_in_the_very_turn_of_the_commit_is_not_passed_over(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COMMIT_S", 0.0)
    world.senders.hold[_OWN] = 0
    world.tell(await ended_batch(world.store, "batch_http", 1, key=None))
    outbound = world.outbound()
    await outbound.step(0.001)
    assert world.statuses.commits[_PART].offset == 1
    # It comes, nothing has begun to deliver it, and the commit is due.
    world.tell(await ended_batch(world.store, "batch_a", 1))
    await outbound.step(0.001)
    assert world.statuses.commits[_PART].offset == 1
    # It is being delivered when the next one is due.
    await eventually(lambda: world.senders.opened[_OWN] == 1)
    await outbound.step(0.001)
    await outbound.stop()
    world.senders.hold.clear()
    world.statuses.give(_PART)
    async with world.running():
        await eventually(world.end)
    assert world.told() == [("output", 0), ("end", None)]


async def test_a_line_no_record_has_room_for_is_told_with_where_it_is(world: _World) -> None:
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


async def test_a_missing_topic_is_given_up_and_the_next_batch_gets_its_turn(world: _World) -> None:
    world.senders.missing.add(BATCH_OUT.of("gone").name)
    gone = [await ended_batch(world.store, f"batch_g{n}", 2, tenant="gone") for n in range(5)]
    world.tell(*gone, await ended_batch(world.store, "batch_a", 2))
    async with world.running():
        await eventually(lambda: world.incomplete("topic_missing") == 5 and world.end())
    assert {dict(r.headers)[BATCH_ID] for r in world.senders.records} == {b"batch_a"}
    # Three tries of the first batch; the others are passed over at their first one.
    assert world.senders.opened[_PART, "gone"] == 3


async def test_a_topic_that_appears_in_time_gets_its_results(world: _World) -> None:
    world.senders.fail("partitions", TopicMissing("not yet"), times=2)
    world.tell(await ended_batch(world.store, "batch_a", 1))
    async with world.running():
        await eventually(world.end)
    assert world.incomplete("topic_missing") == 0


@pytest.mark.parametrize("error", [KafkaBaseError("not authorized"), RecordTooLarge("key")])
async def test_records_that_the_broker_refuses_are_given_up(
    world: _World, error: KafkaBaseError
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


async def test_each_batch_is_tried_as_often_as_the_one_before(world: _World) -> None:
    async with world.running():
        for batch_id in ("batch_a", "batch_b"):
            world.senders.fail("send", KafkaBaseError("odd"), times=4)
            world.tell(await ended_batch(world.store, batch_id, 1))
            await eventually(lambda: not world.behind())
    assert world.told("batch_b") == [("output", 0), ("end", None)]
    assert world.incomplete("topic_refused") == 0


async def test_a_broker_that_is_away_is_waited_for(world: _World) -> None:
    world.senders.fail("commit", BrokerUnreachable("away"), times=50)
    world.tell(await ended_batch(world.store, "batch_a", 1))
    async with world.running():
        await eventually(world.end)
    assert world.told() == [("output", 0), ("end", None)]


async def test_trouble_with_its_sender_costs_no_batch(world: _World) -> None:
    world.senders.fail("open", KafkaBaseError("odd"), times=50)
    world.tell(await ended_batch(world.store, "batch_a", 1))
    async with world.running():
        await eventually(world.end)
    assert world.told() == [("output", 0), ("end", None)]


async def test_the_end_says_that_a_file_is_gone_and_the_other_one_is_sent(world: _World) -> None:
    batch = await ended_batch(world.store, "batch_a", 4, failed=[1, 2])
    assert batch.output is not None
    await world.store.delete(batch.output.key)
    world.tell(batch)
    async with world.running():
        end = await eventually(world.end)
    assert world.told() == [("error", 1), ("error", 2), ("end", None)]
    assert end["results"] == {"sent": 2, "missing": 2, "reason": "file_gone"}
    assert world.incomplete("file_gone") == 1


async def test_the_end_says_how_many_lines_are_in_neither_file(world: _World) -> None:
    world.tell(await ended_batch(world.store, "batch_a", 4, missing=[1]))
    async with world.running():
        end = await eventually(world.end)
    assert world.told() == [("output", 0), ("output", 2), ("output", 3), ("end", None)]
    assert end["results"] == {"sent": 3, "missing": 1, "reason": "lines_missing"}


async def test_a_store_that_is_down_is_waited_for_and_a_broken_file_is_not(world: _World) -> None:
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


async def test_how_far_was_read_is_committed_where_nothing_is_to_be_delivered(
    world: _World,
) -> None:
    for _ in range(3):
        world.tell(await ended_batch(world.store, "batch_http", 1, key=None))
    world.statuses.fails = iter([KafkaBaseError("odd")] * 3)
    async with world.running():
        await eventually(lambda: not world.behind())
    assert world.senders.opened == {}
    assert world.senders.records == []


async def test_partitions_do_not_wait_for_each_other(world: _World) -> None:
    other = TopicPart(_PART.topic, 1)
    world.statuses.give(_PART, other)
    world.senders.hold[_OWN] = 0
    world.tell(await ended_batch(world.store, "batch_b", 1))
    world.tell(await ended_batch(world.store, "batch_a", 1), part=other)
    async with world.running():
        await eventually(world.end)
    assert world.told("batch_b") == []


async def ended_batch_later(world: _World, batch_id: str) -> BatchSnapshot:
    """As ended_batch, written to a store that may be failing."""
    store = FakeObjectStore()
    batch = await ended_batch(store, batch_id, 1)
    world.store.objects |= store.objects
    return batch


def _with(batch: BatchSnapshot, **changes: Any) -> BatchSnapshot:
    import msgspec

    return msgspec.structs.replace(batch, **changes)
