"""Reading input by range, and releasing lines from what was read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from msgspec.structs import replace as replace_struct

from schemas.records import (
    BatchForecasts,
    ControllerLoad,
    ObjectRef,
    OpenRetry,
    OutcomeKind,
    ReadyLine,
    ReadyLines,
    SegmentWritten,
    TenantRecord,
)
from schemas.topics import BATCH_FORECAST, CAPACITY, LINE_READY
from streams.adapters.object_store_fake import FakeObjectStore
from streams.controller.books import Books
from streams.controller.input_lines import BLOCK_BYTES, Blocks, InputLines, Source
from streams.controller.outstanding import FoundSlice
from streams.controller.release import Releaser
from streams.controller.routes import Routes
from streams.domain.batch.effects import CloseLines, OpenLines, SettleLines, SteerLines
from streams.domain.batch.machine import Entry, fold
from streams.domain.batch.row import snapshot_of
from streams.domain.batch.state import InProgress
from streams.domain.billing.budgets.holds import BudgetHolds
from streams.domain.billing.prices.book import parse_prices
from streams.domain.clock import SystemClock
from streams.domain.dispatch.slice import Picked
from streams.domain.enqueued.tenants import Tenants
from streams.domain.forecast.forecast import Outlook
from streams.domain.plan import PlanBuilder, PlanError
from streams.domain.upstreams import parse_upstreams
from streams.ports.object_store import ObjectStoreError
from tests.support.batch_log import TENANT, create, outcome, segment, validated
from tests.support.controller_parts import FakeGuard, FakeRows, FakeSender
from tests.support.waiting import eventually
from tests.support.workers import FakeWorker

PINS = b"pinned prompts"
_BOOK = parse_prices({"currency": "usd", "models": {"m": {"input": "2", "output": "2"}}})


async def stored(
    store: FakeObjectStore,
    lines: list[bytes],
    models: list[int] | None = None,
    key: str = "in",
    pins: Sequence[int] = (),
) -> Source:
    """An input file with its plan; pins: the pin of each line."""
    builder, offset = PlanBuilder(), 0
    for number, line in enumerate(lines):
        pin = pins[number] if pins else 0
        builder.add(offset, len(line), models[number] if models else 0, pin)
        offset += len(line) + 1
    data = b"".join(line + b"\n" for line in lines)
    await store.put(key, data)
    plan = builder.build(PINS if pins else b"")
    await store.put(f"{key}.plan", plan)
    return Source(
        ObjectRef(key=key, size_bytes=len(data)),
        ObjectRef(key=f"{key}.plan", size_bytes=len(plan)),
        len(lines),
        tuple(range(max(models) + 1)) if models else (0,),
    )


async def read_all(reader: InputLines, source: Source, lane: int = 0) -> list[ReadyLine]:
    rows, cursor = [], 0
    while cursor < source.total:
        found, cursor = await reader.rows(source, lane, cursor, 512)
        rows += found
    read: list[ReadyLine] = []
    for at in range(0, len(rows), 10):
        read += await reader.lines(source, [Picked(row, 1) for row in rows[at : at + 10]])
    return read


async def test_lines_are_read_back_exactly_wherever_blocks_cut_them() -> None:
    store = FakeObjectStore()
    lines = [b"%d" % n * (1 + n % 4000) for n in range(400)]
    source = await stored(store, lines)
    read = await read_all(InputLines(store, BLOCK_BYTES), source)
    assert [line.raw for line in read] == lines


async def test_a_large_line_travels_as_a_range_of_the_input_file() -> None:
    store = FakeObjectStore()
    lines = [b"a", b"b" * 5000, b"c"]
    source = await stored(store, lines)
    _, large, _ = await read_all(InputLines(store, 4096), source)
    assert large.raw is None
    assert large.claim is not None
    assert await store.get_range("in", large.claim.offset, large.claim.length) == lines[1]


async def test_a_line_travels_with_the_number_of_its_prompt_version() -> None:
    store = FakeObjectStore()
    source = await stored(store, [b"a", b"b" * 5000, b"c"], pins=[2, 1, 0])
    read = await read_all(InputLines(store, 4096), source)
    assert [(line.pin, line.raw is None) for line in read] == [(2, False), (1, True), (0, False)]
    pins = source.pins
    assert pins is not None
    assert await store.get_range(pins.key, pins.offset, pins.length) == PINS
    assert (await stored(store, [b"a"], key="plain")).pins is None


async def test_each_block_is_read_once_however_many_ask_and_few_are_kept() -> None:
    store = FakeObjectStore()
    await store.put("k", bytes(BLOCK_BYTES * 20 + 10))
    reads = 0
    get_range = store.get_range

    async def counted(key: str, offset: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        await asyncio.sleep(0.001)
        return await get_range(key, offset, length)

    store.get_range = counted  # type: ignore[method-assign]
    blocks = Blocks(store, blocks=4)
    await asyncio.gather(*(blocks.read("k", n * 100, 50) for n in range(100)))
    assert reads == 1
    for n in range(20):
        await blocks.read("k", n * BLOCK_BYTES, 10)
    assert len(blocks._kept) <= 5
    assert await blocks.read("k", 0, 0) == b""
    await blocks.close()


async def test_the_next_block_is_read_ahead_but_none_behind_the_end() -> None:
    store = FakeObjectStore()
    ref = ObjectRef(key="k", size_bytes=BLOCK_BYTES + 10)
    await store.put("k", bytes(ref.size_bytes))
    blocks = Blocks(store)
    blocks.ahead(ref, 0)
    blocks.ahead(ref, BLOCK_BYTES + 1)
    await eventually(lambda: len(blocks._kept) == 1, 5)
    await blocks.close()


async def test_a_failed_read_is_not_remembered() -> None:
    store = FakeObjectStore()
    source = await stored(store, [b"x"])
    reader = InputLines(store, 4096)
    store.fail(1, "get_range")
    with pytest.raises(ObjectStoreError):
        await reader.rows(source, 0, 0, 10)
    assert (await reader.rows(source, 0, 0, 10))[1] == 1


async def test_a_lane_gets_its_own_rows_and_skips_pages_without_any() -> None:
    store = FakeObjectStore()
    source = await stored(store, [b"x"] * 3000, [0] * 2990 + [1] * 10)
    reader = InputLines(store, 4096)
    rows, cursor = await reader.rows(source, 1, 0, 512)
    assert [row.line for row in rows] == list(range(2990, 3000))
    assert cursor == 3000


async def test_a_plan_that_does_not_fit_its_batch_is_refused() -> None:
    store = FakeObjectStore()
    source = await stored(store, [b"x", b"y"], [0, 1])
    reader = InputLines(store, 4096)
    few = Source(source.input, source.plan, 2, (0,))
    with pytest.raises(PlanError):
        await reader.rows(few, 0, 0, 2)
    long = Source(source.input, source.plan, 3, (0, 1))
    with pytest.raises(PlanError):
        await reader.rows(long, 0, 0, 3)
    rows, _ = await reader.rows(source, 0, 0, 2)
    with pytest.raises(PlanError):
        await reader.lines(source, [Picked(rows[0]._replace(offset=99), 1)])


def test_models_that_run_on_the_same_pools_share_a_lane() -> None:
    table = parse_upstreams(
        {
            "upstreams": [
                {"name": "u", "base_url": "http://h/v1", "models": ["a", "b"]},
                {
                    "name": "v",
                    "base_url": "http://h/v1",
                    "models": {"c": {"max_in_flight": 2}, "b": {}},
                },
            ]
        }
    )
    pools, lanes = Routes(table).of(("a", "b", "c", "gone"))
    assert pools == (("u",), ("u", "v"), ("v/c",), ())
    assert lanes == (0, 1, 2, 3)
    assert Routes(table).of(("a", "a")) == ((("u",),), (0, 0))


class Station:
    """A releaser on fakes, and one worker."""

    def __init__(self) -> None:
        self.store = FakeObjectStore()
        self.sender = FakeSender([])
        self.books = Books(FakeRows([], "b"), FakeRows([], "c"))
        self.errors: list[BaseException] = []
        self.foreseen: list[Sequence[Outlook]] = []
        self.worker = FakeWorker("w0", (0,), {"u": 64})
        table = parse_upstreams(
            {"upstreams": [{"name": "u", "base_url": "http://h/v1", "models": ["*"]}]}
        )
        self.clock = SystemClock()
        self.tenants = Tenants(BudgetHolds(lambda: _BOOK))
        self.tenants.limits_known = self.tenants.batches_known = True
        self.releaser = Releaser(
            "c0",
            self.books,
            InputLines(self.store, 4096),
            Routes(table),
            self.tenants,
            self.sender,
            FakeGuard(),
            self.clock,
            self.foreseen.append,
            self.errors.append,
        )

    async def batch(
        self, batch_id: str, lines: int, pins: Sequence[int] = (), tenant: str = TENANT
    ) -> InProgress:
        """A validated batch, with its input in the store."""
        data = [b"%d" % n for n in range(lines)]
        source = await stored(self.store, data, key=batch_id, pins=pins)
        command = create(
            batch_id,
            tenant=tenant,
            at_ms=self.clock.now_ms(),
            input_key=batch_id,
            input_bytes=1 << 20,
        )
        started = fold(None, {}, Entry(command, 0, 0)).batch
        event = validated(lines, batch_id, plan=source.plan)
        batch = fold(started, {}, Entry(event, 1, 0)).batch
        assert isinstance(batch, InProgress)
        self.books.live[batch_id] = batch
        return batch

    def hear(self) -> None:
        self.releaser.hear(self.worker.load(), self.clock.now_ms())

    def read(self) -> None:
        """The worker has read and finished what was released."""
        self.worker.next_offset[0] = len(self.sender.of(LINE_READY))
        self.hear()

    def lines(self, batch_id: str) -> list[int]:
        """Released lines of a batch."""
        released: list[ReadyLines] = self.sender.of(LINE_READY)
        return sorted(n.line for r in released if r.batch_id == batch_id for n in r.lines)

    def attempts(self, batch_id: str) -> set[tuple[int, int, int]]:
        """The last attempt released of each line: (line, attempt, pin)."""
        released: list[ReadyLines] = self.sender.of(LINE_READY)
        lines = [n for r in released if r.batch_id == batch_id for n in r.lines]
        return set({n.line: (n.line, n.attempt, n.pin) for n in lines}.values())


@asynccontextmanager
async def working() -> AsyncIterator[Station]:
    station = Station()
    work = asyncio.create_task(station.releaser.work())
    try:
        yield station
    finally:
        await station.releaser.stop()
        await work
    assert station.errors == []


@pytest.fixture
def never_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the releaser does, it was woken for."""
    monkeypatch.setattr("streams.controller.release.LOAD_PERIOD_S", 3600.0)


async def test_credits_and_batches_wake_the_releaser_at_once(never_by_time: None) -> None:
    async with working() as station:
        station.releaser.apply(OpenLines(await station.batch("batch_1", 10)))
        station.hear()
        await eventually(lambda: station.lines("batch_1") == list(range(10)))
        (record,) = {r.pool: r for r in station.sender.of(LINE_READY)}.values()
        assert record.tail
        assert record.lines[-1].raw is not None
        loads: list[ControllerLoad] = station.sender.of(CAPACITY)
        assert loads[-1].controller == "c0"


async def test_what_is_foreseen_is_published() -> None:
    async with working() as station:
        station.releaser.apply(OpenLines(await station.batch("batch_1", 10)))
        station.hear()
        await eventually(lambda: bool(station.sender.of(BATCH_FORECAST)))
        told: BatchForecasts = station.sender.of(BATCH_FORECAST)[0]
        assert told.controller == "c0"
        assert [(f.batch_id, f.queued) for f in told.forecasts] == [("batch_1", False)]
        assert [o.batch_id for o in station.foreseen[-1]] == ["batch_1"]
    assert station.foreseen[-1] == (), "what another may have by now is not foreseen here"


async def test_a_batch_without_room_waits_until_there_is(never_by_time: None) -> None:
    async with working() as station:
        first, second = [await station.batch(f"batch_{n}", 10) for n in (1, 2)]
        tenants, tenant = station.tenants, first.request.tenant
        tenants.hear_limits(TenantRecord(tenant=tenant, at_ms=0, max_enqueued_lines=15))
        for batch in (first, second):
            tenants.hear_batch(snapshot_of(batch))
        tenants.settle(station.clock.now_ms())
        for batch in (second, first):
            station.releaser.apply(OpenLines(batch))
        station.hear()
        await eventually(lambda: station.lines("batch_1") == list(range(10)))
        assert station.lines("batch_2") == []
        tenants.hear_batch(replace_struct(snapshot_of(first), completed=5, revision=9))
        assert tenants.settle(station.clock.now_ms())
        station.releaser.make_room()
        await eventually(lambda: station.lines("batch_2") == list(range(10)))


async def test_a_batch_is_held_the_moment_another_s_lines_use_the_budget_up(
    never_by_time: None,
) -> None:
    async with working() as station:
        first, second = [await station.batch(f"batch_{n}", 10) for n in (1, 2)]
        tenants, tenant = station.tenants, first.request.tenant
        tenants.hear_limits(TenantRecord(tenant=tenant, at_ms=0, budget_micros=3))
        for batch in (first, second):
            tenants.hear_batch(snapshot_of(batch))
            station.releaser.apply(OpenLines(batch))
        station.releaser.make_room(tenants.settle(station.clock.now_ms()))
        lines = segment([outcome(0)], "batch_1", at_ms=station.clock.now_ms())
        station.books.live["batch_1"] = _folded(first, lines)
        station.releaser.apply(SettleLines("batch_1", (0,), ()))
        station.releaser.apply(OpenLines(await station.batch("other", 30, tenant="b")))
        station.hear()
        await eventually(lambda: station.lines("other") == list(range(30)))
        assert tenants.budgets.holds().keys() == {"batch_1", "batch_2"}
        assert station.lines("batch_1") == station.lines("batch_2") == []
        tenants.hear_limits(TenantRecord(tenant=tenant, at_ms=1, budget_micros=4))
        station.releaser.make_room(tenants.settle(station.clock.now_ms()))
        await eventually(lambda: station.lines("batch_2") == list(range(10)))


def _folded(batch: InProgress, event: SegmentWritten) -> InProgress:
    after = fold(batch, {}, Entry(event, 2, 0)).batch
    assert isinstance(after, InProgress)
    return after


async def test_nothing_is_released_before_the_limits_are_known(never_by_time: None) -> None:
    async with working() as station:
        station.tenants.limits_known = False
        station.releaser.apply(OpenLines(await station.batch("batch_1", 10)))
        station.hear()
        await eventually(lambda: bool(station.sender.of(CAPACITY)))
        assert station.lines("batch_1") == []
        station.tenants.limits_known = True
        station.releaser.make_room()
        await eventually(lambda: station.lines("batch_1") == list(range(10)))


async def test_only_a_slice_with_a_prompt_line_says_where_the_pins_are() -> None:
    async with working() as station:
        # One slice has eight lines, an eighth of the worker's credits.
        pins = [0] * 8 + [0, 1] * 4
        batch = await station.batch("batch_1", 16, pins)
        station.releaser.apply(OpenLines(batch))
        station.hear()
        await eventually(lambda: len(station.lines("batch_1")) == 16, 5)
        records: list[ReadyLines] = station.sender.of(LINE_READY)
        assert {line.line: line.pin for r in records for line in r.lines} == dict(enumerate(pins))
        assert {r.lines[0].line: r.pins is not None for r in records} == {0: False, 8: True}
        claim = next(r.pins for r in records if r.pins)
        assert claim.key == batch.work.plan.key
        assert await station.store.get_range(claim.key, claim.offset, claim.length) == PINS


async def test_another_attempt_keeps_its_prompt_version() -> None:
    async with working() as station:
        station.releaser.apply(OpenLines(await station.batch("batch_1", 3, [1, 0, 2])))
        station.hear()
        await eventually(lambda: len(station.lines("batch_1")) == 3, 5)
        station.read()
        retries = tuple(OpenRetry(line=n, attempt=1, not_before_ms=0) for n in range(3))
        station.releaser.apply(SettleLines("batch_1", (), retries))
        await eventually(lambda: len(station.lines("batch_1")) == 6, 5)
        assert station.attempts("batch_1") == {(0, 2, 1), (1, 2, 0), (2, 2, 2)}


async def test_an_attempt_after_a_restart_keeps_its_prompt_version() -> None:
    station = Station()
    batch = await station.batch("batch_1", 3, [1, 0, 2])
    retry = outcome(2, OutcomeKind.RETRY)
    folded = fold(batch, {}, Entry(segment([retry], "batch_1"), 2, 0))
    station.books.ledgers["batch_1"] = dict(folded.chunks)
    station.releaser.begin([])
    work = asyncio.create_task(station.releaser.work())
    station.hear()
    await eventually(lambda: len(station.lines("batch_1")) == 3, 5)
    await station.releaser.stop()
    await work
    assert station.attempts("batch_1") == {(0, 1, 1), (1, 1, 0), (2, 2, 2)}


async def test_what_was_found_out_is_not_released_again() -> None:
    station = Station()
    await station.batch("batch_1", 10)
    attempts = tuple((n, 1) for n in range(6))
    station.releaser.begin([FoundSlice("batch_1", "u", (0, 0), attempts)])
    work = asyncio.create_task(station.releaser.work())
    station.hear()
    await eventually(lambda: station.lines("batch_1"), 5)
    await station.releaser.stop()
    await work
    assert station.lines("batch_1") == [6, 7, 8, 9]


@pytest.mark.parametrize("broken", ["batch_sick", "batch_sick.plan"])
async def test_a_store_that_fails_for_one_batch_delays_only_that_one(broken: str) -> None:
    async with working() as station:
        sick = await station.batch("batch_sick", 5)
        well = await station.batch("batch_well", 5)
        station.store.broken.add(broken)
        station.releaser.apply(OpenLines(sick))
        station.releaser.apply(OpenLines(well))
        station.hear()
        await eventually(lambda: len(station.lines("batch_well")) == 5, 5)
        assert station.lines("batch_sick") == []
        station.store.broken.clear()
        await eventually(lambda: len(station.lines("batch_sick")) == 5, 5)


async def test_a_paused_batch_is_not_sent_even_if_it_was_chosen_and_resume_sends_it_at_once(
    never_by_time: None,
) -> None:
    async with working() as station:
        batch = await station.batch("batch_1", 200)
        station.releaser.apply(OpenLines(batch))
        station.hear()
        station.releaser.apply(SteerLines("batch_1", batch.terms, paused=True))
        other = await station.batch("batch_2", 5)
        station.releaser.apply(OpenLines(other))
        await eventually(lambda: len(station.lines("batch_2")) == 5, 5)
        assert station.lines("batch_1") == []
        station.read()
        station.releaser.apply(SteerLines("batch_1", batch.terms, paused=False))
        await eventually(lambda: len(station.lines("batch_1")) == 64)


async def test_a_releaser_that_begins_with_a_paused_batch_waits_for_its_resume() -> None:
    station = Station()
    batch = await station.batch("batch_1", 10)
    station.books.live["batch_1"] = replace(batch, paused_at_ms=1)
    other = await station.batch("batch_2", 5)
    station.releaser.begin([FoundSlice("batch_1", "u", (0, 0), ((0, 1), (1, 1)))])
    work = asyncio.create_task(station.releaser.work())
    station.hear()
    await eventually(lambda: station.lines("batch_2") == list(range(other.work.total)), 5)
    assert station.lines("batch_1") == []
    station.releaser.apply(SteerLines("batch_1", batch.terms, paused=False))
    await eventually(lambda: station.lines("batch_1") == list(range(2, 10)), 5)
    await station.releaser.stop()
    await work


async def test_lines_released_after_a_change_carry_the_new_deadline() -> None:
    async with working() as station:
        station.worker.credits["u"] = 8
        batch = await station.batch("batch_1", 16)
        station.releaser.apply(OpenLines(batch))
        station.hear()
        await eventually(lambda: len(station.lines("batch_1")) == 8, 5)
        later = replace(batch.terms, expires_at_ms=batch.terms.expires_at_ms + 60_000)
        station.releaser.apply(SteerLines("batch_1", later, paused=False))
        station.read()
        await eventually(lambda: len(station.lines("batch_1")) == 16, 5)
        deadlines = [r.deadline_ms for r in station.sender.of(LINE_READY)]
        assert set(deadlines) == {batch.terms.expires_at_ms, later.expires_at_ms}
        assert deadlines == sorted(deadlines)


async def test_a_closed_batch_is_not_sent_even_if_it_was_chosen() -> None:
    async with working() as station:
        batch = await station.batch("batch_1", 200)
        station.releaser.apply(OpenLines(batch))
        station.hear()
        station.releaser.apply(CloseLines("batch_1"))
        await station.releaser.stop()
        assert station.lines("batch_1") == []
