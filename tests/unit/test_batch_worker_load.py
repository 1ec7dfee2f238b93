"""What a worker tells the dispatchers, and which batches it knows to have ended."""

from __future__ import annotations

import asyncio

import pytest

from schemas.records import BatchSnapshot, BatchStatus, PartitionSeen, Record, WorkerLoad
from schemas.topics import BATCH_STATUS, LINE_READY
from streams.batch_worker.ended import EndedBatches, StatusFollower
from streams.batch_worker.line import Line
from streams.batch_worker.load import LoadReporter, Progress
from streams.batch_worker.pool import HOP_S, MAX_PREFETCH, MIN_PREFETCH, Pool
from streams.domain.clock import ManualClock, SystemClock
from streams.kafka.errors import SendFailed
from streams.kafka.reader import ReadRecord
from tests.support.waiting import eventually


def _broken(error: BaseException) -> None:
    raise error


async def _never(_line: Line) -> None:
    await asyncio.sleep(60)


def _finish(pool: Pool, lines: int) -> None:
    for _ in range(lines):
        pool.held += 1
        pool.release()


def test_an_idle_pool_offers_what_it_may_run_and_a_little_more() -> None:
    pool = Pool("p", 16, _never, ManualClock(), _broken)
    assert pool.credits() == 16 + MIN_PREFETCH


def test_a_fast_pool_offers_enough_to_bridge_a_hop_and_forgets_it_when_it_slows_down() -> None:
    clock = ManualClock()
    pool = Pool("p", 16, _never, clock, _broken)
    for _ in range(20):
        clock.advance(0.1)
        _finish(pool, 100)
        offered = pool.credits()
    assert offered == pytest.approx(16 + 1000 * HOP_S, rel=0.1)
    for _ in range(20):
        clock.advance(0.5)
        offered = pool.credits()
    assert offered == 16 + MIN_PREFETCH


def test_the_prefetch_is_bounded() -> None:
    clock = ManualClock()
    pool = Pool("p", 1, _never, clock, _broken)
    for _ in range(10):
        clock.advance(0.5)
        _finish(pool, 100_000)
        offered = pool.credits()
    assert offered == 1 + MAX_PREFETCH


def test_a_closed_pool_offers_nothing() -> None:
    pool = Pool("p", 16, _never, ManualClock(), _broken)
    assert pool.close() == []
    assert pool.credits() == 0


def test_progress_says_what_was_read_and_what_is_finished() -> None:
    progress = Progress()
    progress.assigned({2: 10, 0: -1})
    assert progress.seen() == (
        PartitionSeen(partition=0, next_offset=0, committed=-1),
        PartitionSeen(partition=2, next_offset=10, committed=10),
    )
    progress.read(2, 10)
    progress.read(2, 11)
    progress.finished(2, 10)
    progress.revoked({0})
    assert progress.seen() == (PartitionSeen(partition=2, next_offset=12, committed=11),)


def test_a_commit_that_is_looked_up_late_does_not_set_progress_back() -> None:
    progress = Progress()
    progress.read(1, 5)
    progress.finished(1, 5)
    progress.assigned({1: 3})
    assert progress.seen() == (PartitionSeen(partition=1, next_offset=6, committed=6),)


def _reporter(
    sent: list[WorkerLoad], changed: asyncio.Event | None = None, fails: list[bool] | None = None
) -> LoadReporter:
    async def send(load: WorkerLoad) -> None:
        if fails and fails.pop():
            raise SendFailed
        sent.append(load)

    pool = Pool("p", 4, _never, SystemClock(), _broken)
    event = changed or asyncio.Event()
    return LoadReporter("w", [pool], Progress(), send, SystemClock(), event)


async def test_changes_close_together_travel_in_one_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.batch_worker.load.PERIOD_S", 3600.0)
    sent: list[WorkerLoad] = []
    changed = asyncio.Event()
    task = asyncio.create_task(_reporter(sent, changed).run())
    await eventually(lambda: len(sent) == 1)
    for _ in range(10):
        changed.set()
        await asyncio.sleep(0)
    await eventually(lambda: len(sent) >= 2)
    assert len(sent) <= 3
    task.cancel()


async def test_a_quiet_worker_still_says_that_it_lives() -> None:
    sent: list[WorkerLoad] = []
    task = asyncio.create_task(_reporter(sent).run())
    await eventually(lambda: len(sent) >= 2, within_s=3.0)
    assert sent[1].at_ms - sent[0].at_ms >= 900
    task.cancel()


async def test_a_load_that_can_not_be_sent_does_not_end_the_reports() -> None:
    sent: list[WorkerLoad] = []
    reporter = _reporter(sent, fails=[True])
    await reporter.publish()
    assert sent == []
    await reporter.publish(stopping=True)
    await reporter.publish()
    assert [load.stopping for load in sent] == [True, True]


def test_ended_batches_are_remembered_within_a_bound() -> None:
    ended = EndedBatches(limit=3)
    assert [ended.add(b) for b in ("1", "2", "2", "3", "4")] == [True, True, False, True, True]
    assert ("1" in ended, "2" in ended, "4" in ended, len(ended)) == (False, True, True, 3)


def _snapshot(batch_id: str, status: BatchStatus) -> BatchSnapshot:
    return BatchSnapshot(
        batch_id=batch_id,
        tenant="t",
        revision=1,
        status=status,
        created_at_ms=0,
        expires_at_ms=0,
        endpoint="",
        input_file_id="",
        completion_window="24h",
        metadata={},
        request_hash="",
        errors=(),
        total=0,
        completed=0,
        failed=0,
    )


class _Reader:
    def __init__(self, *reads: tuple[int, Record | None]) -> None:
        self._reads = reads

    async def poll(self, timeout_s: float = 0.2) -> list[ReadRecord]:
        return [
            ReadRecord(BATCH_STATUS, 0, n, timestamp_ms, "k", record)
            for n, (timestamp_ms, record) in enumerate(self._reads)
        ]


async def test_a_batch_has_ended_when_its_status_lets_no_line_run() -> None:
    clock = ManualClock()
    snapshots = [(clock.ms, _snapshot(s.value, s)) for s in BatchStatus]
    found: list[str] = []
    running: list[BatchSnapshot] = []
    reader = _Reader(*snapshots, (clock.ms, None))
    await StatusFollower(reader, clock, found.append, running.append).step()
    assert {s.batch_id for s in running} == {"unknown", "validating", "in_progress"}
    assert set(found) == {
        "failed",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    }


async def test_batches_that_ended_before_any_kept_line_are_not_remembered() -> None:
    clock = ManualClock()
    assert LINE_READY.retention_s is not None
    old = clock.ms - LINE_READY.retention_s * 1000 - 1
    found: list[str] = []
    reader = _Reader((old, _snapshot("old", BatchStatus.COMPLETED)))
    await StatusFollower(reader, clock, found.append, lambda _: None).step()
    assert found == []
