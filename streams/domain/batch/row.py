"""A batch as its table keeps it and as callers see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from schemas.records import AssembleReason, BatchRow, BatchSnapshot, BatchStatus, Usage
from streams.domain.batch.state import (
    Batch,
    Cancelling,
    Ended,
    Finalizing,
    InProgress,
    Request,
    Terms,
    Validating,
    Work,
)
from streams.domain.ledger import (
    Counts,
    Ledger,
    accepted_prefix,
    packed_days,
    packed_models,
    unpacked_days,
    unpacked_models,
)
from streams.domain.ledger import total as sum_of

#: The timestamp that goes with each way to end.
_ENDED_AT = {
    BatchStatus.COMPLETED: "completed_at_ms",
    BatchStatus.FAILED: "failed_at_ms",
    BatchStatus.EXPIRED: "expired_at_ms",
    BatchStatus.CANCELLED: "cancelled_at_ms",
}


class RowError(ValueError):
    """This row says what no batch can be."""


def status_of(batch: Batch) -> BatchStatus:
    """The status callers see."""
    match batch:
        case Validating():
            return BatchStatus.VALIDATING
        case InProgress():
            return BatchStatus.IN_PROGRESS
        case Finalizing():
            return BatchStatus.FINALIZING
        case Cancelling():
            return BatchStatus.CANCELLING
        case Ended():
            return batch.status
        case _:
            assert_never(batch)


def counts_of(batch: Batch) -> Counts:
    """Completed and failed lines and their usage, as far as they are known."""
    match batch:
        case Validating():
            return Counts()
        case InProgress():
            return batch.counts
        case Finalizing() | Cancelling():
            return batch.frozen
        case Ended():
            return batch.final
        case _:
            assert_never(batch)


def times_of(batch: Batch) -> dict[str, int]:
    """Every timestamp that is set, by the name it has in snapshots and rows."""
    work = work_of(batch)
    times = {} if work is None else {"in_progress_at_ms": work.in_progress_at_ms}
    match batch:
        case Finalizing():
            times["finalizing_at_ms"] = batch.finalizing_at_ms
        case Cancelling() | Ended():
            if batch.finalizing_at_ms is not None:
                times["finalizing_at_ms"] = batch.finalizing_at_ms
            if batch.cancelling_at_ms is not None:
                times["cancelling_at_ms"] = batch.cancelling_at_ms
    if isinstance(batch, Ended):
        times[_ENDED_AT[batch.status]] = batch.ended_at_ms
    return times


def paused_at(batch: Batch) -> int | None:
    """Since when the batch is paused; None unless it is."""
    return batch.paused_at_ms if isinstance(batch, Validating | InProgress) else None


def work_of(batch: Batch) -> Work | None:
    """What intake found, once it has."""
    return None if isinstance(batch, Validating) else batch.work


def prefix_of(batch: Batch) -> int:
    """Lines that are in before the first one that is not, while the files are not there yet."""
    return 0 if isinstance(batch, Validating | Ended) else batch.accepted_prefix


def snapshot_of(batch: Batch) -> BatchSnapshot:
    """The whole batch as callers see it."""
    request, work, counts = batch.request, work_of(batch), counts_of(batch)
    ended, times = (batch if isinstance(batch, Ended) else None), times_of(batch)
    return BatchSnapshot(
        batch_id=request.batch_id,
        tenant=request.tenant,
        revision=batch.watermark,
        status=status_of(batch),
        created_at_ms=request.created_at_ms,
        expires_at_ms=batch.terms.expires_at_ms,
        endpoint=request.endpoint,
        input_file_id=request.input_file_id,
        completion_window=request.completion_window,
        metadata=request.metadata,
        output_expires_after_s=request.output_expires_after_s,
        request_hash=request.request_hash,
        model=work.models[0] if work and len(work.models) == 1 else None,
        output_file_id=ended.output_file_id if ended else None,
        error_file_id=ended.error_file_id if ended else None,
        errors=ended.errors if ended else (),
        total=work.total if work else 0,
        completed=counts.completed,
        failed=counts.failed,
        usage=counts.usage,
        prompts=work.prompts if work else (),
        unused_variables=work.unused_variables if work else 0,
        priority=batch.terms.priority,
        paused_at_ms=paused_at(batch),
        commands=() if ended else batch.commands,
        estimated_input_tokens=work.estimated_input_tokens if work else 0,
        origin_batch_id=request.origin_batch_id,
        accepted_prefix=prefix_of(batch),
        usage_by_model=packed_models(counts),
        usage_of_later_days=packed_days(counts),
        kafka_key=request.kafka_key,
        key_id=request.key_id,
        estimated_cost_micros=request.estimated_cost_micros,
        output=ended.output if ended else None,
        error=ended.error if ended else None,
        in_progress_at_ms=times.get("in_progress_at_ms"),
        finalizing_at_ms=times.get("finalizing_at_ms"),
        completed_at_ms=times.get("completed_at_ms"),
        failed_at_ms=times.get("failed_at_ms"),
        expired_at_ms=times.get("expired_at_ms"),
        cancelling_at_ms=times.get("cancelling_at_ms"),
        cancelled_at_ms=times.get("cancelled_at_ms"),
    )


def to_row(batch: Batch) -> BatchRow:
    """The row of the batch; of an ended one only the stub that keeps it from starting again."""
    request, work, counts = batch.request, work_of(batch), counts_of(batch)
    ended, times = (batch if isinstance(batch, Ended) else None), times_of(batch)
    frozen = not isinstance(batch, InProgress)
    return BatchRow(
        batch_id=request.batch_id,
        tenant=request.tenant,
        watermark=batch.watermark,
        commands=() if ended else batch.commands,
        status=status_of(batch),
        created_at_ms=request.created_at_ms,
        expires_at_ms=batch.terms.expires_at_ms,
        endpoint=request.endpoint,
        input_file_id=request.input_file_id,
        input=None if ended else request.input,
        completion_window=request.completion_window,
        metadata={} if ended else request.metadata,
        output_expires_after_s=request.output_expires_after_s,
        request_hash=request.request_hash,
        plan=work.plan if work else None,
        total=work.total if work else 0,
        models=work.models if work and not ended else (),
        estimated_input_tokens=work.estimated_input_tokens if work else 0,
        prompts=work.prompts if work and not ended else (),
        unused_variables=work.unused_variables if work else 0,
        priority=batch.terms.priority,
        paused_at_ms=paused_at(batch),
        origin_batch_id=request.origin_batch_id,
        errors=(),
        output_file_id=ended.output_file_id if ended else None,
        error_file_id=ended.error_file_id if ended else None,
        reason=batch.reason
        if isinstance(batch, Finalizing | Cancelling)
        else AssembleReason.UNKNOWN,
        # Until the lines are frozen their sums live in the chunks only.
        final_completed=counts.completed if frozen else 0,
        final_failed=counts.failed if frozen else 0,
        final_usage=counts.usage if frozen else Usage(),
        frozen_prefix=prefix_of(batch) if frozen else 0,
        kafka_key=request.kafka_key,
        key_id=request.key_id,
        estimated_cost_micros=request.estimated_cost_micros,
        final_by_model=packed_models(counts) if frozen and not ended else (),
        final_later=packed_days(counts) if frozen and not ended else (),
        in_progress_at_ms=times.get("in_progress_at_ms"),
        finalizing_at_ms=times.get("finalizing_at_ms"),
        completed_at_ms=times.get("completed_at_ms"),
        failed_at_ms=times.get("failed_at_ms"),
        expired_at_ms=times.get("expired_at_ms"),
        cancelling_at_ms=times.get("cancelling_at_ms"),
        cancelled_at_ms=times.get("cancelled_at_ms"),
    )


def from_row(row: BatchRow, chunks: Mapping[int, Ledger]) -> Batch:
    """The state that a row and the batch's chunks hold. Raises RowError."""
    work = _work(row)
    frozen = Counts(
        row.final_completed,
        row.final_failed,
        row.final_usage,
        unpacked_models(row.final_by_model),
        unpacked_days(row.final_later),
    )
    # Chunk rows may be behind a row that froze them, and nothing is folded into them any more; rows
    # of earlier versions don't hold the prefix.
    prefix = max(row.frozen_prefix, accepted_prefix(chunks))
    common: dict[str, Any] = {
        "request": _request(row),
        "terms": Terms(priority=row.priority, expires_at_ms=row.expires_at_ms),
        "watermark": row.watermark,
        "commands": row.commands,
    }
    match row.status:
        case BatchStatus.VALIDATING:
            return Validating(**common, paused_at_ms=row.paused_at_ms)
        case BatchStatus.IN_PROGRESS if work:
            return InProgress(
                **common,
                work=work,
                counts=sum_of(chunks.values()),
                accepted_prefix=accepted_prefix(chunks),
                paused_at_ms=row.paused_at_ms,
            )
        case BatchStatus.FINALIZING if work and row.finalizing_at_ms is not None:
            return Finalizing(
                **common,
                work=work,
                frozen=frozen,
                accepted_prefix=prefix,
                reason=row.reason,
                finalizing_at_ms=row.finalizing_at_ms,
            )
        case BatchStatus.CANCELLING if row.cancelling_at_ms is not None:
            return Cancelling(
                **common,
                work=work,
                frozen=frozen,
                accepted_prefix=prefix,
                reason=row.reason,
                finalizing_at_ms=row.finalizing_at_ms,
                cancelling_at_ms=row.cancelling_at_ms,
            )
        case status if status in _ENDED_AT:
            return _ended(row, common, work, frozen)
        case status:
            raise RowError(f"a row with status {status.value} lacks what that status needs")


def _ended(row: BatchRow, common: dict[str, Any], work: Work | None, final: Counts) -> Ended:
    return Ended(
        **common,
        status=row.status,
        work=work,
        final=final,
        finalizing_at_ms=row.finalizing_at_ms,
        cancelling_at_ms=row.cancelling_at_ms,
        ended_at_ms=getattr(row, _ENDED_AT[row.status]) or row.expires_at_ms,
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
    )


def _request(row: BatchRow) -> Request:
    return Request(
        batch_id=row.batch_id,
        tenant=row.tenant,
        created_at_ms=row.created_at_ms,
        endpoint=row.endpoint,
        input_file_id=row.input_file_id,
        input=row.input,
        completion_window=row.completion_window,
        metadata=row.metadata,
        output_expires_after_s=row.output_expires_after_s,
        request_hash=row.request_hash,
        origin_batch_id=row.origin_batch_id,
        kafka_key=row.kafka_key,
        key_id=row.key_id,
        estimated_cost_micros=row.estimated_cost_micros,
    )


def _work(row: BatchRow) -> Work | None:
    if row.plan is None or row.in_progress_at_ms is None:
        return None
    return Work(
        plan=row.plan,
        total=row.total,
        models=row.models,
        estimated_input_tokens=row.estimated_input_tokens,
        prompts=row.prompts,
        unused_variables=row.unused_variables,
        in_progress_at_ms=row.in_progress_at_ms,
    )
