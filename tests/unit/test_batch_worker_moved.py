"""Lines that a worker holds when the window of their batch is moved."""

from __future__ import annotations

from schemas.records import BatchSnapshot, BatchStatus, OutcomeKind
from streams.adapters.inference_fake import Reply
from streams.batch_worker.moved import MovedWindows
from tests.support.worker_bench import FAR_MS, Bench, lines, until


def snapshot(ends_ms: int, *commands: str, batch_id: str = "b1") -> BatchSnapshot:
    return BatchSnapshot(
        batch_id=batch_id,
        tenant="t",
        revision=1,
        status=BatchStatus.IN_PROGRESS,
        created_at_ms=0,
        expires_at_ms=ends_ms,
        endpoint="",
        input_file_id="",
        completion_window="24h",
        metadata={},
        request_hash="",
        errors=(),
        total=0,
        completed=0,
        failed=0,
        commands=("create", *commands),
    )


async def test_a_waiting_line_may_begin_until_the_later_end() -> None:
    bench = Bench(lambda _path, _body: Reply(delay_s=0.05), limit=1)
    bench.take(*lines(0), offset=1)
    await until(lambda: bench.requests() == 1)
    bench.take(*lines(1), offset=2, deadline_ms=1)
    bench.worker.runs(snapshot(FAR_MS, "change"))
    await until(lambda: len(bench.finished) == 2)
    assert [o.kind for o in bench.outcomes] == [OutcomeKind.COMPLETED] * 2


async def test_a_line_that_is_read_after_the_change_may_begin_until_the_later_end() -> None:
    bench = Bench()
    bench.worker.runs(snapshot(FAR_MS, "change"))
    bench.take(*lines(0), deadline_ms=1)
    await until(lambda: bench.finished)
    assert bench.requests() == 1


async def test_an_earlier_end_and_another_batch_change_nothing() -> None:
    bench = Bench()
    bench.worker.runs(snapshot(5, "change"))
    bench.worker.runs(snapshot(FAR_MS, "change", batch_id="b2"))
    bench.worker.runs(snapshot(FAR_MS))
    bench.take(*lines(0), offset=1, deadline_ms=1)
    bench.take(*lines(1), offset=2, deadline_ms=FAR_MS)
    await until(lambda: len(bench.finished) == 2)
    assert [o.line for o in bench.outcomes] == [1]


def test_moved_windows_are_remembered_within_a_bound_and_until_the_batch_ends() -> None:
    moved = MovedWindows(limit=2)
    assert [moved.note(snapshot(9, "c", batch_id=b)) for b in ("1", "1", "2", "3")] == [
        *(True, False, True, True)
    ]
    assert moved.note(snapshot(9, "c", batch_id="1")), "it was forgotten"
    moved.forget("1")
    assert moved.note(snapshot(9, "c", batch_id="1"))
