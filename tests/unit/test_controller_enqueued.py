"""The controller follows limits and batches, and knows when it has read them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

from structlog.testing import capture_logs

from api.log_fake import FakeLog
from schemas.records import BatchStatus, TenantRecord
from schemas.topics import ACCOUNT, BATCH_STATUS
from streams.controller.enqueued import EnqueuedFollower
from streams.domain.clock import ManualClock
from tests.support.waiting import eventually
from tests.unit.test_enqueued import snapshot


@asynccontextmanager
async def following(log: FakeLog) -> AsyncIterator[EnqueuedFollower]:
    follower = EnqueuedFollower(log.reader([ACCOUNT]), log.reader([BATCH_STATUS]), ManualClock())
    await follower.start()
    tasks = [
        asyncio.create_task(work) for work in (follower.follow_limits(), follower.follow_batches())
    ]
    try:
        yield follower
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await follower.stop()


async def limit(log: FakeLog, lines: int | None) -> None:
    record = TenantRecord(tenant="a", at_ms=0, max_enqueued_lines=lines)
    await log.send(ACCOUNT, "tenant/a", record)


async def test_until_all_was_read_nobody_has_room() -> None:
    log = FakeLog()
    await limit(log, 100)
    await log.send(BATCH_STATUS, "b", snapshot("b"))
    log.held = True
    async with following(log) as follower:
        tenants = follower.tenants
        await eventually(lambda: log.ends_asked == 2)
        assert not tenants.limits_known
        assert tenants.waits("a", "b")
        log.held = False
        log.wake()
        await eventually(lambda: tenants.limits_known and tenants.batches_known)
        await eventually(lambda: not tenants.waits("a", "b"))


async def test_who_listens_is_told_when_room_changes_and_not_when_it_doesn_t() -> None:
    log, told = FakeLog(), list[Collection[str] | None]()

    async with following(log) as follower:
        tenants = follower.tenants
        await eventually(lambda: tenants.limits_known and tenants.batches_known)
        follower.listener = told.append
        await log.send(BATCH_STATUS, "first", snapshot("first"))
        await limit(log, 10)
        await eventually(lambda: bool(told) and not tenants.waits("a", "first"))
        await log.send(BATCH_STATUS, "second", snapshot("second", created_at_ms=1 << 45))
        await eventually(lambda: "second" in tenants.positions(0))
        assert None in told, "a limit is for any batch, known or not"
        told.clear()
        assert tenants.waits("a", "second")
        over = snapshot("first", revision=2, status=BatchStatus.FINALIZING)
        await log.send(BATCH_STATUS, "first", over)
        await eventually(lambda: not tenants.waits("a", "second"))
        assert told == [{"first", "second"}], "one has gone, the other may go on"


async def test_a_budget_without_a_price_book_is_warned_of_once() -> None:
    log = FakeLog()
    await log.send(ACCOUNT, "tenant/a", TenantRecord(tenant="a", at_ms=0, budget_micros=5))
    with capture_logs() as said:
        async with following(log) as follower:
            await eventually(lambda: follower.tenants.limits_known and said)
            await limit(log, 5)
            await eventually(lambda: follower.tenants.waits("a", "unseen"))
    assert [entry["action"] for entry in said] == ["budgets_not_enforced"]


async def test_a_broker_that_is_away_for_a_while_is_read_again() -> None:
    log = FakeLog()
    async with following(log) as follower:
        await eventually(lambda: follower.tenants.batches_known)
        with capture_logs() as said:
            log.unreachable = True
            log.wake()
            await eventually(lambda: bool(said))
        assert said[0]["action"] == "enqueued_not_read"
        log.unreachable = False
        await limit(log, 5)
        await eventually(lambda: follower.tenants.waits("a", "unseen"), 10)
