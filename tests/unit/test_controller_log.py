"""The order of a step, and what the controller's memory and tables hold afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from schemas.records import BatchStatus, OutcomeKind
from schemas.topics import BATCH_EVENT, BATCH_STATUS, FILE, FILE_TASK, USAGE_RECORDED, WEBHOOK_EVENT
from streams.controller.books import STUB_KEPT_MS, Books
from streams.controller.commands import CommandRelay
from streams.controller.log import STEP_EVENTS, BatchLog, Step
from streams.controller.snapshots import Snapshots
from streams.controller.windows import Windows
from streams.domain.batch.effects import CloseLines, OpenLines, SettleLines, SteerLines
from streams.domain.batch.state import InProgress
from streams.domain.clock import ManualClock
from streams.kafka.queued import Queued
from streams.kafka.role import Consumed
from tests.support.batch_log import (
    BATCH,
    CREATED_MS,
    ENDS_MS,
    TENANT,
    assembled,
    cancel,
    change,
    create,
    outcome,
    pause,
    resume,
    segment,
    validated,
    window_ended,
)
from tests.support.controller_parts import (
    PARTITIONS,
    FakeConsumer,
    FakeGuard,
    FakeRows,
    FakeSender,
    consumed,
    in_log,
)
from tests.support.waiting import eventually


class Desk:
    """A log on fakes."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.batches = FakeRows(self.journal, "batches")
        self.chunks = FakeRows(self.journal, "chunks")
        self.sender = FakeSender(self.journal)
        self.consumer = FakeConsumer(self.journal)
        self.rejected: list[str] = []
        self.steps: list[Step] = []
        self.start()

    def start(self) -> None:
        """A process on these tables."""
        self.books = Books(self.batches, self.chunks)
        self.books.load(range(PARTITIONS), PARTITIONS)
        self.snapshots = Snapshots(self.books, self.sender, FakeGuard())
        self.snapshots.reset()
        self.log = BatchLog(
            self.books, self.snapshots, self.sender, FakeGuard(), self.reject, self.steps.append
        )

    async def reject(self, event: Consumed, error: str) -> None:
        self.rejected.append(error)
        event.ack()

    async def feed(self, *records: object, first: int = 100) -> None:
        await self.log.step(in_log(records, self.consumer, first))


async def test_a_step_sends_effects_then_snapshots_then_writes_chunks_then_batches_then_acks() -> (
    None
):
    desk = Desk()
    await desk.feed(create(), validated(2), segment([outcome(0), outcome(1)]), assembled(2, 0))
    assert sorted(desk.journal[:4]) == sorted(
        [FILE_TASK.name, USAGE_RECORDED.name, FILE_TASK.name, FILE.name]
    )
    told = [BATCH_STATUS.name, WEBHOOK_EVENT.name]
    assert desk.journal[4:] == [*told, "chunks", "batches", "ack", "ack", "ack", "ack"]
    (snapshot,) = desk.sender.of(BATCH_STATUS)
    assert (snapshot.status, snapshot.revision) == (BatchStatus.COMPLETED, 103)
    (ended,) = desk.sender.of(WEBHOOK_EVENT)
    assert (ended.batch_id, ended.tenant, ended.status) == (BATCH, TENANT, BatchStatus.COMPLETED)
    await desk.feed(cancel(), segment([outcome(0)]), first=200)
    assert desk.sender.of(WEBHOOK_EVENT) == [ended], "a batch ends once"


async def test_a_step_whose_partition_was_revoked_meanwhile_writes_nothing() -> None:
    desk = Desk()
    desk.sender.delay_s = 0.02
    step = asyncio.create_task(desk.feed(create()))
    await eventually(lambda: desk.journal, 5)
    desk.consumer.live = False
    await step
    assert desk.batches.data == {}
    assert desk.books.live == {}
    assert desk.steps == []


async def test_usage_of_one_batch_travels_together_and_is_split_when_it_grows() -> None:
    desk = Desk()
    parts = [segment([outcome(n) for n in range(at, at + 900)]) for at in range(0, 4500, 900)]
    await desk.feed(create(), validated(5000), *parts)
    usage = desk.sender.of(USAGE_RECORDED)
    assert [len(record.lines) for record in usage] == [2700, 1800]
    assert {line.line for record in usage for line in record.lines} == set(range(4500))


async def test_an_event_in_the_wrong_partition_is_rejected() -> None:
    desk = Desk()
    await desk.log.step([consumed(create(), 1, desk.consumer, partition=99)])
    assert len(desk.rejected) == 1
    assert desk.batches.data == {}


async def test_the_dispatcher_hears_in_order_once_the_rows_are_written() -> None:
    desk = Desk()
    await desk.feed(create(), validated(3), segment([outcome(0)]), cancel())
    (step,) = desk.steps
    assert [type(e) for e in step.line_effects] == [OpenLines, SettleLines, CloseLines]
    assert [b.request.batch_id for b in step.windows] == [BATCH]


async def test_the_dispatcher_hears_of_a_pause_and_the_clock_of_a_moved_window() -> None:
    desk = Desk()
    await desk.feed(create(), create("batch_0002"), validated(3))
    await desk.feed(pause(), change(5), first=200)
    await desk.feed(change(None, ENDS_MS + 60_000, command_id="cmd_2"), resume(), first=300)
    _, paused, moved = desk.steps
    assert [type(e) for e in paused.line_effects] == [SteerLines, SteerLines]
    (shown,) = paused.snapshots
    assert (shown.paused_at_ms, shown.priority) == (CREATED_MS + 20_000, 5)
    assert [b.request.batch_id for b in moved.windows] == [BATCH]
    assert [type(e) for e in moved.line_effects] == [SteerLines, SteerLines]


async def test_a_restart_while_paused_finds_the_pause_and_the_terms() -> None:
    desk = Desk()
    await desk.feed(create(), validated(3), pause(), change(-4, ENDS_MS + 60_000))
    live = dict(desk.books.live)
    desk.start()
    assert desk.books.live == live
    batch = desk.books.live[BATCH]
    assert isinstance(batch, InProgress)
    assert batch.paused_at_ms == CREATED_MS + 20_000
    assert (batch.terms.priority, batch.terms.expires_at_ms) == (-4, ENDS_MS + 60_000)


async def test_a_restart_finds_the_same_state_in_the_tables() -> None:
    desk = Desk()
    retry = outcome(700, OutcomeKind.RETRY, retry_at_ms=5)
    await desk.feed(create(), validated(1000), segment([outcome(0), outcome(600), retry]))
    live, ledgers = dict(desk.books.live), dict(desk.books.ledgers)
    desk.start()
    assert desk.books.live == live
    assert desk.books.ledgers == ledgers
    desk.books.load([], PARTITIONS)
    assert desk.books.live == {}


async def test_chunks_of_an_ended_batch_are_deleted_and_its_stub_much_later() -> None:
    desk = Desk()
    await desk.feed(create(), validated(1000), segment([outcome(0), outcome(600)]), window_ended())
    await desk.feed(assembled(2, 998), first=200)
    assert len(desk.chunks.data) == 2
    desk.start()
    desk.books.delete_leftovers(10)
    assert desk.chunks.data == {}
    assert desk.books.ledgers == {}
    ended_at_ms = CREATED_MS + 60_000
    desk.books.delete_old_stubs(ended_at_ms + STUB_KEPT_MS - 1)
    assert set(desk.batches.data) == {BATCH}
    effects = len(desk.sender.sent)
    await desk.feed(create(), validated(5), first=300)
    assert len(desk.sender.sent) == effects
    desk.books.delete_old_stubs(ended_at_ms + STUB_KEPT_MS)
    assert desk.batches.data == {}


async def test_leftovers_are_deleted_in_the_process_that_ended_the_batch_too() -> None:
    desk = Desk()
    await desk.feed(create(), validated(1), segment([outcome(0)]), assembled(1, 0))
    desk.books.delete_leftovers(10)
    assert desk.chunks.data == {}
    assert not desk.books.leftovers


async def test_counts_are_published_once_a_period_and_never_an_older_snapshot() -> None:
    desk = Desk()
    await desk.feed(create(), validated(10))
    await desk.feed(segment([outcome(0)]), first=200)
    before = len(desk.sender.of(BATCH_STATUS))
    await desk.snapshots.flush()
    await desk.snapshots.flush()
    published = desk.sender.of(BATCH_STATUS)
    assert len(published) == before + 1
    assert (published[-1].completed, published[-1].revision) == (1, 200)
    stale = published[0]
    await desk.snapshots.publish([stale])
    assert len(desk.sender.of(BATCH_STATUS)) == before + 1


async def test_after_a_restart_every_live_batch_is_published_again() -> None:
    desk = Desk()
    await desk.feed(create(), validated(10), segment([outcome(0)]))
    desk.start()
    await desk.snapshots.flush()
    assert desk.sender.of(BATCH_STATUS)[-1].completed == 1


async def test_a_window_is_ended_by_an_event_on_the_log() -> None:
    desk = Desk()
    await desk.feed(create(), create("batch_0002"), cancel("batch_0002"))
    clock = ManualClock(ENDS_MS - 30)
    windows = Windows(desk.books, desk.sender, clock)
    windows.watch(desk.books.live.values())
    work = asyncio.create_task(windows.work())
    await asyncio.sleep(0.05)
    assert desk.sender.of(BATCH_EVENT) == []
    clock.advance(0.03)
    (event,) = await eventually(lambda: desk.sender.of(BATCH_EVENT), 8)
    assert (event.batch_id, event.at_ms) == (BATCH, ENDS_MS)
    work.cancel()


async def test_a_window_that_is_moved_is_ended_at_its_new_end_only() -> None:
    desk = Desk()
    await desk.feed(create(), create("batch_0002", window_s=7200), validated(1))
    clock = ManualClock(ENDS_MS - 10_000)
    windows = Windows(desk.books, desk.sender, clock)
    windows.watch(desk.books.live.values())
    work = asyncio.create_task(windows.work())
    sooner = change(None, ENDS_MS - 5000, batch_id="batch_0002")
    await desk.feed(change(None, ENDS_MS + 5000), sooner, first=200)
    windows.watch(desk.steps[-1].windows)
    clock.ms = ENDS_MS
    (event,) = await eventually(lambda: desk.sender.of(BATCH_EVENT), 8)
    assert event.batch_id == "batch_0002"
    clock.ms = ENDS_MS + 5000
    windows.watch([desk.books.live[BATCH]])
    await eventually(lambda: len(desk.sender.of(BATCH_EVENT)) > 1, 8)
    assert desk.sender.of(BATCH_EVENT)[1].batch_id == BATCH
    work.cancel()


async def commands(desk: Desk, *records: Consumed) -> None:
    """Lets a relay work on commands until all are acked."""
    relay = CommandRelay(desk.sender, desk.reject)

    async def feed() -> AsyncIterator[Consumed]:
        for record in records:
            yield record

    work = asyncio.create_task(relay.work())
    await relay.consume(feed())
    await eventually(lambda: len(desk.consumer.acked) == len(records), 5)
    work.cancel()


async def test_commands_of_one_batch_are_emitted_in_their_order_and_then_acked() -> None:
    desk = Desk()
    desk.sender.delay_s = 0.01
    await commands(desk, *in_log([create(), cancel(), create("batch_0002")], desk.consumer))
    emitted = [(type(r).__name__, r.batch_id) for r in desk.sender.of(BATCH_EVENT)]
    assert emitted.index(("BatchCreate", BATCH)) < emitted.index(("BatchCancel", BATCH))
    assert len(emitted) == 3


@pytest.mark.parametrize("batch_id", ["../../etc", "batch_", "batch_a/b", "nobatch"])
async def test_a_command_with_a_harmful_id_or_a_foreign_key_is_rejected(batch_id: str) -> None:
    desk = Desk()
    wrong_key = consumed(create(), 2, desk.consumer, key=b"other")
    await commands(desk, consumed(create(batch_id), 1, desk.consumer), wrong_key)
    assert len(desk.rejected) == 2
    assert desk.sender.sent == []


async def test_a_command_with_a_priority_that_no_batch_may_have_is_rejected() -> None:
    desk = Desk()
    wrong = in_log([change(101), change(-101)], desk.consumer)
    await commands(desk, *wrong, *in_log([change(-100), change(None, ENDS_MS)], desk.consumer, 200))
    assert len(desk.rejected) == 2
    assert "between -100 and 100" in desk.rejected[0]
    assert [r.priority for r in desk.sender.of(BATCH_EVENT)] == [-100, None]


async def test_a_queue_hands_out_groups_and_holds_no_more_than_its_limit() -> None:
    queued, consumer = Queued(150), FakeConsumer([])
    read = 0

    async def endless() -> AsyncIterator[Consumed]:
        nonlocal read
        while True:
            read += 1
            yield consumed(create(), read, consumer)

    filling = asyncio.create_task(queued.fill(endless()))
    assert len(await queued.take(STEP_EVENTS)) == STEP_EVENTS
    await asyncio.sleep(0.01)
    assert read <= 150 + STEP_EVENTS
    consumer.live = False
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queued.take(STEP_EVENTS), 0.05)
    filling.cancel()
