"""The follower: waits that end exactly when the rows have it, and a log that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from api.log_fake import FakeLog
from api.read_model.follower import Follower, LogReplaced
from api.read_model.queries import Queries
from api.read_model.schema import TOPICS
from api.read_model.store import AWAY_LIMIT_MS, HEARTBEAT_MS, ReadModelStore
from schemas.records import FileRecord, ObjectRef
from schemas.topics import FILE
from streams.domain.clock import Clock, ManualClock, SystemClock
from streams.kafka.errors import KafkaBaseError
from streams.kafka.producer import Place
from tests.support.waiting import eventually


def record(number: int) -> FileRecord:
    return FileRecord(
        file_id=f"file-{number}",
        tenant="acme",
        object=ObjectRef(key="k", size_bytes=1),
        filename="f",
        purpose="batch",
        created_at_ms=number,
    )


class Following:
    """A follower at work, with what it reads and writes."""

    def __init__(self, log: FakeLog, store: ReadModelStore, follower: Follower) -> None:
        self.log = log
        self.store = store
        self.follower = follower
        self.queries = Queries(store.reader)
        self.task = asyncio.create_task(follower.run())

    async def send(self, number: int) -> Place:
        return await self.log.send(FILE, f"file-{number}", record(number))

    async def has(self, number: int) -> bool:
        return await self.queries.file("acme", f"file-{number}", 0) is not None


@asynccontextmanager
async def following(
    log: FakeLog, store: ReadModelStore, clock: Clock | None = None
) -> AsyncIterator[Following]:
    follower = Follower(log.reader(TOPICS), log.identity, store, clock or SystemClock())
    await follower.start()
    running = Following(log, store, follower)
    try:
        yield running
    finally:
        running.task.cancel()
        with suppress(asyncio.CancelledError, KafkaBaseError):
            await running.task
        await follower.stop()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.read_model.follower._RECONNECT_S", 0.02)


@pytest.fixture
async def store() -> AsyncIterator[ReadModelStore]:
    opened = await ReadModelStore.open(None, identity="fake-cluster", clock=SystemClock())
    yield opened
    await opened.close()


async def test_it_has_caught_up_once_it_read_what_was_there(store: ReadModelStore) -> None:
    log = FakeLog()
    await log.send(FILE, "file-1", record(1))
    async with following(log, store) as running:
        await eventually(lambda: running.follower.caught_up)
        assert await running.has(1)


async def test_a_record_that_was_reached_is_in_the_rows(store: ReadModelStore) -> None:
    async with following(FakeLog(), store) as running:
        for number in range(20):
            place = await running.send(number)
            assert await running.follower.reached(FILE, place, 30.0)
            assert await running.has(number)


async def test_waiting_for_a_record_ends_when_the_time_is_over(store: ReadModelStore) -> None:
    async with following(FakeLog(), store) as running:
        running.log.held = True
        place = await running.send(1)
        assert not await running.follower.reached(FILE, place, 0.05)


async def test_after_a_sync_everything_sent_before_it_is_in_the_rows(
    store: ReadModelStore,
) -> None:
    async with following(FakeLog(), store) as running:
        for number in range(20):
            await running.send(number)
            await running.follower.sync(30.0)
            assert await running.has(number)


async def test_a_sync_asked_during_another_does_not_share_its_older_ends(
    store: ReadModelStore,
) -> None:
    async with following(FakeLog(), store) as running:
        await eventually(lambda: running.follower.caught_up)
        running.log.held = True
        await running.send(1)
        first = asyncio.create_task(running.follower.sync(30.0))
        await asyncio.sleep(0.05)
        await running.send(2)
        second = asyncio.create_task(running.follower.sync(30.0))
        await asyncio.sleep(0.05)
        assert not first.done()
        running.log.held = False
        running.log.wake()
        await second
        assert await running.has(2)
        await first


async def test_syncs_asked_together_ask_the_log_once(store: ReadModelStore) -> None:
    async with following(FakeLog(), store) as running:
        await eventually(lambda: running.follower.caught_up)
        before = running.log.ends_asked
        await asyncio.gather(*(running.follower.sync(30.0) for _ in range(1000)))
        assert running.log.ends_asked - before <= 2


async def test_syncs_asked_while_reading_lags_share_the_round_after_it(
    store: ReadModelStore,
) -> None:
    async with following(FakeLog(), store) as running:
        await eventually(lambda: running.follower.caught_up)
        running.log.held = True
        await running.send(1)
        before = running.log.ends_asked
        syncs = []
        for _ in range(20):
            syncs.append(asyncio.create_task(running.follower.sync(30.0)))
            await asyncio.sleep(0.005)
        assert running.log.ends_asked - before == 1
        running.log.held = False
        running.log.wake()
        await asyncio.gather(*syncs)
        assert running.log.ends_asked - before == 2


async def test_a_sync_without_a_log_fails_for_everyone_and_the_next_may_succeed(
    store: ReadModelStore,
) -> None:
    async with following(FakeLog(), store) as running:
        await eventually(lambda: running.follower.caught_up)
        running.log.unreachable = True
        answers = await asyncio.gather(
            *(running.follower.sync(30.0) for _ in range(10)), return_exceptions=True
        )
        assert all(isinstance(a, KafkaBaseError) for a in answers)
        running.log.unreachable = False
        await running.send(1)
        await running.follower.sync(30.0)
        assert await running.has(1)


async def test_a_sync_that_nobody_waits_for_any_more_is_no_trouble(store: ReadModelStore) -> None:
    async with following(FakeLog(), store) as running:
        await eventually(lambda: running.follower.caught_up)
        running.log.held = True
        await running.send(1)
        with pytest.raises(TimeoutError):
            await running.follower.sync(0.05)
        running.log.held = False
        running.log.wake()
        await running.follower.sync(30.0)


async def test_reading_goes_on_when_the_log_comes_back(store: ReadModelStore) -> None:
    async with following(FakeLog(), store) as running:
        await running.follower.sync(30.0)
        running.log.unreachable = True
        running.log.wake()
        await asyncio.sleep(0.1)
        running.log.unreachable = False
        place = await running.send(1)
        assert await running.follower.reached(FILE, place, 30.0)


async def test_a_log_that_comes_back_as_another_ends_it(store: ReadModelStore) -> None:
    async with following(FakeLog(), store) as running:
        await running.follower.sync(30.0)
        running.log.unreachable = True
        running.log.wake()
        await asyncio.sleep(0.05)
        running.log.name = "another"
        running.log.unreachable = False
        with pytest.raises(LogReplaced):
            async with asyncio.timeout(30):
                await running.task


async def test_a_restart_reads_only_what_is_new(store: ReadModelStore) -> None:
    log = FakeLog()
    async with following(log, store) as running:
        place = await running.send(1)
        assert await running.follower.reached(FILE, place, 30.0)
    async with store.writing() as writer:
        await writer.execute("DELETE FROM files")
    async with following(log, store) as running:
        place = await running.send(2)
        assert await running.follower.reached(FILE, place, 30.0)
        assert not await running.has(1)


async def test_a_log_shorter_than_the_rows_is_read_anew(store: ReadModelStore) -> None:
    log = FakeLog()
    async with following(log, store) as running:
        await running.send(1)
        assert await running.follower.reached(FILE, await running.send(1), 5.0)
    log.records.clear()
    async with following(log, store) as running:
        await running.follower.sync(30.0)
        assert not await running.has(1)
        await running.send(2)
        await running.follower.sync(30.0)
        assert await running.has(2)


async def test_a_silent_log_that_answers_is_not_a_log_out_of_reach(store: ReadModelStore) -> None:
    clock = ManualClock()
    async with following(FakeLog(), store, clock) as running:
        await eventually(lambda: running.follower.caught_up)
        for _ in range(3):
            asked = running.log.ends_asked
            clock.advance(HEARTBEAT_MS / 1000)
            running.log.wake()
            await eventually(lambda n=asked: running.log.ends_asked > n)  # type: ignore[misc]
        assert not running.task.done()


async def test_a_log_out_of_reach_for_longer_than_tombstones_live_ends_it(
    store: ReadModelStore,
) -> None:
    clock = ManualClock()
    async with following(FakeLog(), store, clock) as running:
        await eventually(lambda: running.follower.caught_up)
        clock.advance(AWAY_LIMIT_MS / 1000 + 1)
        await running.send(1)
        with pytest.raises(LogReplaced):
            async with asyncio.timeout(30):
                await running.task
