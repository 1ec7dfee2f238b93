"""The life of a batch, path by path."""

from __future__ import annotations

import zlib

import pytest

from schemas.records import (
    AssembleReason,
    AssembleTask,
    BatchError,
    BatchRejected,
    BatchStatus,
    IntakeTask,
    OutcomeKind,
    Usage,
)
from streams.domain.batch.effects import CloseLines, OpenLines, SettleLines
from streams.domain.batch.machine import Event
from streams.domain.batch.row import RowError, from_row, snapshot_of, status_of, to_row
from streams.domain.batch.state import Finalizing, InProgress
from tests.support.batch_log import (
    BATCH,
    CREATED_MS,
    ENDS_MS,
    TENANT,
    Controller,
    assembled,
    cancel,
    create,
    entries,
    outcome,
    pinned,
    segment,
    validated,
    window_ended,
)

DONE, FAILED, RETRY = OutcomeKind.COMPLETED, OutcomeKind.FAILED, OutcomeKind.RETRY


def run(*events: Event) -> Controller:
    return Controller().feed(entries(events))


def statuses(controller: Controller) -> list[str]:
    return [snapshot.status.value for snapshot in controller.snapshots]


def last(controller: Controller) -> tuple[int, int, int]:
    snapshot = controller.snapshots[-1]
    return snapshot.total, snapshot.completed, snapshot.failed


def assemble_task(controller: Controller) -> AssembleTask:
    (task,) = [t for t in controller.tasks if isinstance(t, AssembleTask)]
    return task


def rejected() -> BatchRejected:
    error = BatchError(code="empty_file", message="The file has no lines.")
    return BatchRejected(
        task_id=f"{BATCH}:intake",
        batch_id=BATCH,
        tenant=TENANT,
        at_ms=CREATED_MS + 500,
        errors=(error,),
    )


def test_a_batch_goes_from_create_to_completed() -> None:
    done = run(create(), validated(2), segment([outcome(0), outcome(1, FAILED)]), assembled(1, 1))
    assert statuses(done) == ["validating", "in_progress", "finalizing", "completed"]
    assert last(done) == (2, 1, 1)
    snapshot = done.snapshots[-1]
    assert snapshot.output_file_id == "file-out-1"
    assert snapshot.error_file_id == "file-err-1"
    assert snapshot.expires_at_ms == CREATED_MS + 3600 * 1000
    assert snapshot.model == "m"
    assert snapshot.usage == Usage(input_tokens=3, output_tokens=4)
    assert done.file_names == [f"{BATCH}_output.jsonl", f"{BATCH}_error.jsonl"]


def test_create_asks_for_intake_and_validated_opens_the_lines() -> None:
    started = run(create(), validated(3))
    (task,) = started.tasks
    assert isinstance(task, IntakeTask)
    assert (task.batch_id, task.deadline_ms) == (BATCH, ENDS_MS)
    assert [type(e) for e in started.effects].count(OpenLines) == 1


def test_the_window_starts_on_the_second_that_the_api_shows() -> None:
    started = run(create(at_ms=CREATED_MS + 999))
    assert started.snapshots[0].created_at_ms == CREATED_MS
    assert started.snapshots[0].expires_at_ms == ENDS_MS


def test_a_batch_of_an_unknown_file_fails_at_once_and_starts_no_intake() -> None:
    failed = run(create(known=False))
    assert statuses(failed) == ["failed"]
    assert failed.tasks == []
    (error,) = failed.snapshots[-1].errors
    assert error.code == "invalid_request"
    assert error.param == "file_id"
    assert error.message == (
        "Cannot find file file-1, or organization tenant-a does not have access to it."
    )


def test_a_file_of_another_purpose_fails_the_batch() -> None:
    failed = run(create(purpose="fine-tune"))
    assert statuses(failed) == ["failed"]
    assert "fine-tune" in failed.snapshots[-1].errors[0].message


def test_rejection_fails_the_batch_with_all_errors_and_keeps_them_out_of_the_row() -> None:
    failed = run(create(), rejected())
    assert statuses(failed) == ["validating", "failed"]
    assert failed.snapshots[-1].errors[0].code == "empty_file"
    assert failed.snapshots[-1].failed_at_ms == CREATED_MS + 500
    assert failed.row is not None
    assert failed.row.errors == ()


def test_a_create_whose_window_has_passed_starts_nothing() -> None:
    (entry,) = entries([create()])
    late = type(entry)(entry.event, entry.offset, ENDS_MS)
    expired = Controller().feed([late])
    assert statuses(expired) == ["expired"]
    assert expired.tasks == []
    assert expired.feed(entries([validated(2)], first=900)).snapshots[-1].total == 0


def test_a_second_create_and_a_second_validation_change_nothing() -> None:
    once = run(create(), validated(3))
    twice = run(create(), create(at_ms=CREATED_MS + 9000), validated(3), validated(7))
    assert snapshot_of_last(twice) == snapshot_of_last(once)


def snapshot_of_last(controller: Controller) -> tuple[int, int]:
    assert controller.batch is not None
    snapshot = snapshot_of(controller.batch)
    return snapshot.created_at_ms, snapshot.total


def test_a_batch_shows_the_prompts_of_its_first_validation_to_the_end() -> None:
    pins = pinned(("summarize", 2, 3), ("translate", 1, 1))
    first = validated(4, prompts=pins, unused_variables=3)
    second = validated(4, prompts=pinned(("summarize", 9, 4)), at_ms=CREATED_MS + 2000)
    done = run(
        create(), first, second, segment([outcome(n) for n in range(4)]), second, assembled(4, 0)
    )
    assert statuses(done) == ["validating", "in_progress", "finalizing", "completed"]
    assert [s.prompts for s in done.snapshots] == [(), pins, pins, pins]
    assert [s.unused_variables for s in done.snapshots] == [0, 3, 3, 3]


def test_events_of_an_unknown_batch_change_nothing() -> None:
    unknown: list[Event] = [
        cancel(),
        validated(1),
        rejected(),
        segment([outcome(0)]),
        assembled(1, 0),
        window_ended(),
    ]
    for event in unknown:
        assert run(event).batch is None


def test_an_answer_to_another_task_is_ignored() -> None:
    validating = run(create())
    stranger = type(validated(1))(
        **{f: getattr(validated(1), f) for f in validated(1).__struct_fields__}
        | {"task_id": "batch_other:intake"}
    )
    assert validating.feed(entries([stranger], first=500)).batch == run(create()).batch


def test_cancel_freezes_the_lines_and_asks_for_their_assembly() -> None:
    cancelled = run(create(), validated(10), segment([outcome(0), outcome(9, FAILED)]), cancel())
    assert statuses(cancelled)[-1] == "cancelling"
    task = assemble_task(cancelled)
    assert task.reason is AssembleReason.CANCELLED
    assert zlib.decompress(task.accepted) == bytes([0b0000_0001, 0b0000_0010])
    assert (task.total, task.completed, task.failed) == (10, 1, 1)
    assert CloseLines(BATCH) in cancelled.effects
    assert isinstance(cancelled.effects[-1], CloseLines)


def test_a_cancelled_batch_counts_its_unfinished_lines_as_failed_at_the_end() -> None:
    cancelled = run(
        create(),
        validated(10),
        segment([outcome(0)]),
        cancel(),
        segment([outcome(1)]),
        assembled(1, 9),
    )
    assert statuses(cancelled)[-2:] == ["cancelling", "cancelled"]
    assert last(cancelled) == (10, 1, 9)
    assert set(cancelled.bill) == {0}


def test_cancel_before_validation_ends_without_files() -> None:
    cancelled = run(create(), cancel(), validated(5), assembled(0, 0))
    assert statuses(cancelled) == ["validating", "cancelling", "cancelled"]
    task = assemble_task(cancelled)
    assert (task.plan, task.input, task.total, zlib.decompress(task.accepted)) == (
        None,
        None,
        0,
        b"",
    )
    snapshot = cancelled.snapshots[-1]
    assert (snapshot.output_file_id, snapshot.error_file_id, snapshot.total) == (None, None, 0)


def test_cancel_while_finalizing_keeps_the_assembly_that_runs() -> None:
    cancelled = run(create(), validated(1), segment([outcome(0)]), cancel(), assembled(1, 0))
    assert statuses(cancelled)[-3:] == ["finalizing", "cancelling", "cancelled"]
    assert assemble_task(cancelled).reason is AssembleReason.COMPLETED
    snapshot = cancelled.snapshots[-1]
    assert snapshot.finalizing_at_ms is not None
    assert snapshot.cancelling_at_ms == CREATED_MS + 50_000
    assert snapshot.output_file_id == "file-out-1"


def test_a_second_cancel_and_one_of_another_tenant_change_nothing() -> None:
    once = run(create(), validated(2), cancel())
    assert run(create(), validated(2), cancel(), cancel(command_id="cmd_2")).batch == once.batch
    foreign = run(create(), validated(2), cancel(tenant="tenant-b"))
    assert statuses(foreign)[-1] == "in_progress"


def test_cancel_of_an_ended_batch_changes_nothing() -> None:
    events = (create(), validated(1), segment([outcome(0)]), assembled(1, 0))
    assert run(*events, cancel()).batch == run(*events).batch


def test_an_expired_batch_keeps_its_finished_lines() -> None:
    expired = run(
        create(),
        validated(4),
        segment([outcome(2)]),
        window_ended(),
        segment([outcome(3)]),
        assembled(1, 3),
    )
    assert statuses(expired)[-2:] == ["finalizing", "expired"]
    assert assemble_task(expired).reason is AssembleReason.EXPIRED
    assert last(expired) == (4, 1, 3)
    assert expired.snapshots[-1].expired_at_ms is not None
    assert expired.snapshots[-1].completed_at_ms is None


def test_a_window_that_ends_while_finalizing_expires_the_batch_with_all_its_lines() -> None:
    expired = run(create(), validated(1), segment([outcome(0)]), window_ended(), assembled(1, 0))
    assert statuses(expired)[-1] == "expired"
    assert last(expired) == (1, 1, 0)
    assert [t.task_id for t in expired.tasks] == [f"{BATCH}:intake", f"{BATCH}:assemble"]


def test_a_window_that_ends_before_validation_expires_the_batch_without_files() -> None:
    expired = run(create(), window_ended(), validated(3))
    assert statuses(expired) == ["validating", "expired"]
    assert expired.snapshots[-1].error_file_id is None


def test_a_window_cannot_end_early_or_after_the_cancel() -> None:
    early = run(create(), validated(2), window_ended(at_ms=ENDS_MS - 1))
    assert statuses(early)[-1] == "in_progress"
    late = run(create(), validated(2), cancel(), window_ended())
    assert statuses(late)[-1] == "cancelling"


def test_all_lines_failing_completes_without_an_output_file() -> None:
    done = run(
        create(), validated(2), segment([outcome(0, FAILED), outcome(1, FAILED)]), assembled(0, 2)
    )
    snapshot = done.snapshots[-1]
    assert (snapshot.status, snapshot.output_file_id) == (BatchStatus.COMPLETED, None)
    assert snapshot.error_file_id == "file-err-1"
    assert last(done) == (2, 0, 2)


def test_a_line_is_counted_and_billed_once_however_often_it_comes() -> None:
    twice = run(
        create(), validated(3), segment([outcome(0), outcome(0), outcome(1)]), segment([outcome(1)])
    )
    assert isinstance(twice.batch, InProgress)
    assert twice.batch.counts.completed == 2
    assert [line.line for usage in twice.usage for line in usage.lines] == [0, 1]


def test_a_line_that_the_plan_lacks_is_never_counted() -> None:
    odd = run(create(), validated(2), segment([outcome(2), outcome(-1), outcome(999)]))
    assert isinstance(odd.batch, InProgress)
    assert odd.batch.counts.accepted == 0
    assert odd.usage == []


def test_a_retry_is_opened_once_and_closed_by_the_lines_outcome() -> None:
    again = run(create(), validated(2), segment([outcome(0, RETRY, retry_at_ms=5)]))
    settled = [e for e in again.effects if isinstance(e, SettleLines)]
    assert [(r.line, r.attempt, r.not_before_ms) for r in settled[-1].retries] == [(0, 1, 5)]
    again.feed(entries([segment([outcome(0, RETRY, retry_at_ms=9)])], first=500))
    assert len([e for e in again.effects if isinstance(e, SettleLines)]) == 1
    again.feed(entries([segment([outcome(0, RETRY, attempt=2, retry_at_ms=9)])], first=600))
    assert again.chunks[0].retries[0].attempt == 2
    again.feed(entries([segment([outcome(0, attempt=3)])], first=700))
    assert again.chunks[0].retries == {}
    assert again.usage[-1].lines[0].line == 0


def test_a_retry_and_its_success_in_one_segment_open_nothing() -> None:
    both = run(create(), validated(2), segment([outcome(0, RETRY), outcome(0, attempt=2)]))
    (settled,) = [e for e in both.effects if isinstance(e, SettleLines)]
    assert (settled.accepted, settled.retries) == ((0,), ())


def test_lost_lines_move_from_completed_to_failed() -> None:
    lost = run(create(), validated(2), segment([outcome(0), outcome(1)]), assembled(1, 1, lost=1))
    assert last(lost) == (2, 1, 1)
    assert lost.snapshots[-1].usage == Usage(input_tokens=3, output_tokens=4)


def test_the_first_assembly_wins() -> None:
    done = run(
        create(), validated(1), segment([outcome(0)]), assembled(1, 0), assembled(1, 0, attempt=2)
    )
    assert done.snapshots[-1].output_file_id == "file-out-1"
    assert len(done.file_names) == 1


def test_a_batch_of_no_lines_goes_straight_to_assembly() -> None:
    assert statuses(run(create(), validated(0)))[-1] == "finalizing"


def test_several_models_leave_the_batch_without_one() -> None:
    assert run(create(), validated(2, models=("a", "b"))).snapshots[-1].model is None


def test_output_files_expire_after_thirty_days_or_as_asked() -> None:
    done = run(create(), validated(1), segment([outcome(0)]), assembled(1, 0))
    files = [e.file for e in done.effects if hasattr(e, "file")]
    assert files[0].expires_at_ms == files[0].created_at_ms + 30 * 86_400 * 1000
    assert files[0].purpose == "batch_output"
    assert files[0].batch_id == BATCH


@pytest.mark.parametrize("taken", range(1, 6))
def test_a_row_holds_the_whole_state_until_the_batch_ends(taken: int) -> None:
    events = (
        create(),
        validated(600, prompts=pinned(("s", 1, 600)), unused_variables=2),
        segment([outcome(0), outcome(513)]),
        window_ended(),
        cancel(),
    )
    controller = run(*events[:taken])
    assert controller.restart().batch == controller.batch


def test_the_row_of_an_ended_batch_is_a_stub_that_stops_any_new_start() -> None:
    valid = validated(1, prompts=pinned(("s", 1, 1)))
    ended = run(create(), valid, segment([outcome(0)]), assembled(1, 0))
    assert ended.row is not None
    assert (ended.row.metadata, ended.row.models, ended.row.input) == ({}, (), None)
    assert ended.row.prompts == ()
    again = ended.restart()
    effects = len(again.effects)
    again.feed(entries([create(), validated(1)], first=900))
    assert len(again.effects) == effects
    assert again.batch is not None
    assert status_of(again.batch) is BatchStatus.COMPLETED


def test_a_row_that_no_batch_can_have_is_refused() -> None:
    finalizing = run(create(), validated(1), segment([outcome(0)]))
    assert isinstance(finalizing.batch, Finalizing)
    row = to_row(finalizing.batch)
    values = {f: getattr(row, f) for f in row.__struct_fields__}
    for broken in ({"finalizing_at_ms": None}, {"status": BatchStatus.UNKNOWN}):
        with pytest.raises(RowError):
            from_row(type(row)(**values | broken), {})
