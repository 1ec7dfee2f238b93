"""The collector between reading outcomes and acking them, store and broker in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from schemas.records import (
    ClaimCheck,
    DoneLines,
    Outcome,
    OutcomeKind,
    SegmentWritten,
    Usage,
)
from streams.adapters.object_store_fake import FakeObjectStore
from streams.collector import pace as pacing
from streams.collector import packer as packing
from streams.collector.collector import MAX_SPAN, Collector
from streams.collector.pace import FULL_LINES, MAX_AGE_S, MIN_AGE_S, Pace, Waiting
from streams.collector.packer import Packer
from streams.domain import segment
from streams.domain.clock import SystemClock
from streams.kafka.errors import SendFailed
from streams.ports.object_store import ObjectStoreError
from tests.support.waiting import eventually

COMPLETED, FAILED, RETRY = OutcomeKind.COMPLETED, OutcomeKind.FAILED, OutcomeKind.RETRY


def _broken(error: BaseException) -> None:
    raise error


def outcome(line: int, kind: OutcomeKind = COMPLETED, **changes: object) -> Outcome:
    rendered = None if kind is RETRY else json.dumps({"line": line}).encode()
    fields: dict[str, object] = {"rendered": rendered, "attempt": 1, "model": "m", **changes}
    return Outcome(line=line, kind=kind, **fields)  # type: ignore[arg-type]


class Store(FakeObjectStore):
    """Fails as often as told, and can be held up."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0
        self.open = asyncio.Event()
        self.open.set()

    async def put(self, key: str, data: bytes) -> None:
        await self.open.wait()
        self._fail()
        await super().put(key, data)

    async def get_range(self, key: str, offset: int, length: int) -> bytes:
        self._fail()
        return await super().get_range(key, offset, length)

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ObjectStoreError("down")


class Bench:
    """A collector and everything that it announced and finished."""

    def __init__(self, max_held_bytes: int = 1 << 24) -> None:
        self.store = Store()
        self.events: list[SegmentWritten] = []
        self.finished: list[int] = []
        self.send_failures = 0
        packer = Packer(self.store, self._send, SystemClock())
        self.collector = Collector(packer, SystemClock(), _broken, max_held_bytes=max_held_bytes)

    async def _send(self, event: SegmentWritten) -> None:
        await asyncio.sleep(0)
        if self.send_failures:
            self.send_failures -= 1
            raise SendFailed
        self.events.append(event)

    def take(
        self,
        offset: int,
        *outcomes: Outcome,
        batch: str = "b1",
        tail: bool = False,
        partition: int = 0,
    ) -> None:
        done = DoneLines(
            batch_id=batch, tenant="t", at_ms=0, worker="w", tail=tail, outcomes=outcomes
        )
        self.collector.take(done, partition, offset, lambda: self.finished.append(offset))

    async def entries(self, event: SegmentWritten) -> dict[int, bytes]:
        """The lines of an event's segment object."""
        assert event.segment is not None
        data = await self.store.get(event.segment.key)
        assert len(data) == event.segment.size_bytes
        footer = data[-segment.FOOTER_BYTES :]
        start, length = segment.index_range(footer, len(data))
        index = segment.read_index(data[start : start + length], footer)
        return {e.line: data[e.offset : e.offset + e.length] for e in index}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is packed for its age within the test."""
    monkeypatch.setattr(pacing, "MIN_AGE_S", 60.0)


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    await eventually(lambda: bool(condition()), within_s=within_s)


async def test_outcomes_become_a_segment_and_an_event_and_then_the_record_is_finished() -> None:
    bench = Bench()
    usage = Usage(input_tokens=3)
    bench.take(4, outcome(9, usage=usage), outcome(2, FAILED, model="n"))
    bench.take(6, outcome(5, RETRY, retry_at_ms=1 << 50, model=""), tail=True)
    await until(lambda: len(bench.finished) == 2)
    (event,) = bench.events
    assert (event.batch_id, event.tenant, event.partition) == ("b1", "t", 0)
    assert event.models == ("m", "n")
    told = [(x.line, x.done_offset, x.kind, x.model) for x in event.lines]
    assert told == [(9, 4, COMPLETED, 0), (2, 4, FAILED, 1), (5, 6, RETRY, -1)]
    assert event.lines[0].usage == usage
    assert event.lines[2].retry_at_ms == 1 << 50
    assert await bench.entries(event) == {9: b'{"line": 9}', 2: b'{"line": 2}'}
    assert bench.finished == [4, 6]
    assert bench.collector.held_bytes == 0


@pytest.mark.usefixtures("patient")
async def test_retries_alone_are_told_at_once_and_write_no_object() -> None:
    bench = Bench()
    bench.take(0, outcome(1, RETRY, retry_at_ms=1 << 50))
    await until(lambda: bench.finished)
    assert bench.events[0].segment is None
    assert [key async for key in bench.store.list("")] == []


async def test_a_young_batch_is_packed_by_age_and_its_records_travel_together() -> None:
    bench = Bench()
    for n in range(10):
        bench.take(n, outcome(n))
    await until(lambda: len(bench.finished) == 10)
    assert len(bench.events) == 1


@pytest.mark.usefixtures("patient")
async def test_a_full_buffer_does_not_wait() -> None:
    bench = Bench()
    for n in range(4):
        bench.take(n, *(outcome(n * 500 + i) for i in range(500)))
    await until(lambda: len(bench.finished) == 4)
    assert len(bench.events) == 1
    assert len(bench.events[0].lines) == FULL_LINES


async def test_order_holds_within_a_batch_while_a_pack_is_held_up_and_others_go_on() -> None:
    bench = Bench()
    bench.store.open.clear()
    bench.take(0, outcome(0), tail=True)
    await asyncio.sleep(0)
    bench.take(1, outcome(1, RETRY, retry_at_ms=0), tail=True)
    bench.take(2, outcome(2), tail=True)
    bench.take(3, outcome(0, RETRY), batch="b2", tail=True)
    await until(lambda: bench.finished)
    assert bench.finished == [3]
    bench.store.open.set()
    await until(lambda: len(bench.finished) == 4)
    offsets = [x.done_offset for e in bench.events if e.batch_id == "b1" for x in e.lines]
    assert offsets == [0, 1, 2]


async def test_pressure_does_not_break_the_order_of_a_batch_that_is_being_packed() -> None:
    bench = Bench()
    bench.store.open.clear()
    bench.take(0, outcome(0), tail=True)
    await asyncio.sleep(0)
    bench.take(1, outcome(1, RETRY))
    bench.take(MAX_SPAN, outcome(0, RETRY), batch="b2")
    await until(lambda: bench.finished)
    bench.store.open.set()
    await until(lambda: len(bench.finished) == 3)
    offsets = [x.done_offset for e in bench.events if e.batch_id == "b1" for x in e.lines]
    assert offsets == [0, 1]


async def test_store_and_broker_are_tried_until_they_take_it() -> None:
    bench = Bench()
    bench.store.failures = 2
    bench.send_failures = 1
    bench.take(0, outcome(0), tail=True)
    await until(lambda: bench.finished)
    assert len(bench.events) == 1
    assert await bench.entries(bench.events[0]) == {0: b'{"line": 0}'}


async def test_a_claimed_outcome_is_embedded() -> None:
    bench = Bench()
    await bench.store.put("batches/b1/claims/x", b'{"big":1}')
    claim = ClaimCheck(key="batches/b1/claims/x", offset=0, length=9)
    bench.store.failures = 1
    bench.take(0, outcome(0, rendered=None, claim=claim), tail=True)
    await until(lambda: bench.finished)
    assert await bench.entries(bench.events[0]) == {0: b'{"big":1}'}


@pytest.mark.parametrize(
    "claim",
    [
        None,
        ClaimCheck(key="gone", offset=0, length=9),
        ClaimCheck(key="here", offset=0, length=99),
        ClaimCheck(key="here", offset=0, length=4, sha256="0" * 64),
    ],
)
async def test_an_outcome_that_is_lost_is_not_told_so_that_its_line_runs_again(
    claim: ClaimCheck | None,
) -> None:
    bench = Bench()
    await bench.store.put("here", b"1234")
    bench.take(0, outcome(0, rendered=None, claim=claim), outcome(1), tail=True)
    bench.take(1, outcome(2, OutcomeKind.UNKNOWN), batch="b2")
    bench.take(2, batch="b3")
    await until(lambda: len(bench.finished) == 3)
    (event,) = bench.events
    assert [x.line for x in event.lines] == [1]


async def test_large_outcomes_are_split_over_several_segments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "PART_BYTES", 100)
    bench = Bench()
    bench.take(0, *(outcome(n, rendered=b"x" * 60) for n in range(4)), tail=True)
    bench.take(1, outcome(4, rendered=b"x" * 500), tail=True)
    await until(lambda: len(bench.finished) == 2)
    assert [[x.line for x in e.lines] for e in bench.events] == [[0], [1], [2], [3], [4]]


@pytest.mark.usefixtures("patient")
async def test_memory_is_bounded_and_pressure_packs_early() -> None:
    bench = Bench(max_held_bytes=10_000)
    bench.store.open.clear()
    taken = 0
    while bench.collector.held_bytes <= 10_000:
        await asyncio.wait_for(bench.collector.room(), 30)
        bench.take(taken, outcome(taken, rendered=b"x" * 1000), batch=f"b{taken}")
        taken += 1
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bench.collector.room(), 0.05)
    bench.store.open.set()
    await asyncio.wait_for(bench.collector.room(), 30)
    await until(lambda: len(bench.finished) == taken)


@pytest.mark.usefixtures("patient")
async def test_a_slow_batch_does_not_hold_back_the_acks_of_busy_ones() -> None:
    bench = Bench()
    bench.take(0, outcome(0), batch="slow")
    for n in range(1, MAX_SPAN):
        bench.take(n, outcome(n, RETRY), batch="busy")
    bench.take(MAX_SPAN, outcome(0, RETRY), batch="busy")
    await until(lambda: 0 in bench.finished)


async def test_what_waits_of_a_revoked_partition_is_left_to_the_next_reader() -> None:
    bench = Bench()
    bench.take(0, outcome(0), partition=0)
    bench.take(0, outcome(0), batch="b2", partition=1)
    bench.collector.revoked({0})
    bench.take(0, outcome(0), partition=0)
    await until(lambda: len(bench.finished) == 2)
    assert sorted(e.batch_id for e in bench.events) == ["b1", "b2"]
    assert bench.collector.held_bytes == 0


async def test_a_stop_packs_what_waits() -> None:
    bench = Bench()
    bench.take(0, outcome(0))
    await bench.collector.stop(5.0)
    assert bench.finished == [0]
    bench.take(1, outcome(1))
    assert bench.collector.held_bytes == 0


async def test_a_stop_does_not_wait_longer_than_its_budget() -> None:
    bench = Bench()
    bench.store.open.clear()
    bench.take(0, outcome(0))
    await asyncio.wait_for(bench.collector.stop(0.05), 30)
    assert bench.finished == []


def _packed(pace: Pace, seconds: float, lines_per_s: float, start: float = 0.0) -> list[float]:
    """Ages that a batch goes through that gets so many lines a second."""
    now, ages = start, []
    while now < start + seconds:
        ages.append(pace.age_s)
        now += max(pace.age_s, 1 / lines_per_s)
        pace.packed(max(round(pace.age_s * lines_per_s), 1), now)
    return ages


def test_a_busy_batch_stays_at_the_shortest_age() -> None:
    assert max(_packed(Pace(0.0), 60, 2000)) == MIN_AGE_S


def test_a_slow_batch_shows_progress_while_young_and_is_packed_rarely_when_old() -> None:
    ages = _packed(Pace(0.0), 3600, 1)
    assert ages[:3] == [MIN_AGE_S] * 3
    assert ages[-1] == MAX_AGE_S
    assert len(ages) < 250


def test_a_batch_that_gets_busy_is_packed_often_again() -> None:
    pace = Pace(0.0)
    _packed(pace, 3600, 1)
    assert _packed(pace, 60, 2000, start=3600.0)[-1] == MIN_AGE_S


def test_retries_are_told_before_they_are_due_and_soon_in_any_case() -> None:
    pace = Pace(0.0)
    pace.age_s = MAX_AGE_S
    soon = Waiting(since_s=10.0, lines=2, finals=1, retry_at_s=10.05)
    later = Waiting(since_s=10.0, lines=2, finals=1, retry_at_s=99.0)
    assert pace.due_s(soon) < 10.05
    assert pace.due_s(later) == 10.0 + MIN_AGE_S
    assert pace.due_s(Waiting(since_s=10.0, lines=1, finals=1)) == 10.0 + MAX_AGE_S
