"""The life of a batch: a pure fold of its log, (batch, chunks, entry) -> (batch, chunks, effects).

                        ┌─ unknown file, wrong purpose ─► failed
    create ─────────────┼─ window already over ─────────► expired
                        ▼
                   Validating ── rejected ──────────────► failed
                     │  │  └──── window ended ──────────► expired
                     │  └─────── cancel ────┐
                 validated                  │
                     ▼                      ▼
                 InProgress ── cancel ─► Cancelling ── assembled ─► cancelled
                     │                      ▲
      all lines in,  │                      │
      window ended   ▼                      │
                 Finalizing ── cancel ──────┘
                     └── assembled ──► completed, or expired if the window ended first

An arrow that isn't drawn is an event that changes nothing: a repeated command, a late outcome, a
second assembly. Pausing, resuming and changing a batch are no arrows: they leave it in its state
(batch_control). Leaving InProgress freezes the set of lines; what comes later is ignored, and
the lines that are not in count as failed once their error lines are assembled.

Replays change nothing. The batch's watermark and each chunk's own say what they have folded, so
the rows of one event may be written and lost independently: whichever is behind folds again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from schemas.records import (
    AssembleReason,
    BatchAssembled,
    BatchCancel,
    BatchChange,
    BatchCreate,
    BatchError,
    BatchPause,
    BatchRejected,
    BatchResume,
    BatchStatus,
    BatchValidated,
    BatchWindowEnded,
    SegmentWritten,
)
from streams.domain.batch.collect import collect
from streams.domain.batch.control import Control, remember, steer
from streams.domain.batch.effects import (
    CloseLines,
    Effect,
    OpenLines,
    PublishSnapshot,
    RecordFile,
    SendTask,
)
from streams.domain.batch.files import output_files
from streams.domain.batch.row import prefix_of, snapshot_of
from streams.domain.batch.state import (
    Batch,
    Cancelling,
    Ended,
    Finalizing,
    InProgress,
    Validating,
    Work,
    event_time,
    request_of,
    terms_of,
)
from streams.domain.batch.tasks import (
    assemble_id,
    assemble_task,
    intake_id,
    intake_task,
    usable_input,
)
from streams.domain.ledger import Counts, Ledger, accepted_prefix
from streams.domain.ledger import total as sum_of

Event = (
    BatchCreate
    | BatchCancel
    | Control
    | BatchValidated
    | BatchRejected
    | SegmentWritten
    | BatchAssembled
    | BatchWindowEnded
)
"""Everything the log of a batch may hold."""

Chunks = Mapping[int, Ledger]


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of the log: its offset, and when the log took it, in Unix milliseconds."""

    event: Event
    offset: int
    logged_at_ms: int


@dataclass(frozen=True, slots=True)
class Folded:
    """What became of an event: the batch, the chunks that changed, and what is to be done."""

    batch: Batch | None
    chunks: Chunks = field(default_factory=dict)
    effects: tuple[Effect, ...] = ()


def fold(batch: Batch | None, chunks: Chunks, entry: Entry) -> Folded:
    """Folds one event. `chunks` are the batch's ledgers, as far as there are any."""
    event = entry.event
    if isinstance(event, SegmentWritten):
        return _segment(batch, chunks, event, entry.offset)
    if batch is not None and entry.offset <= batch.watermark:
        return Folded(batch)
    match event:
        case BatchCreate():
            return _create(event, entry) if batch is None else Folded(batch)
        case BatchCancel():
            return _cancel(batch, chunks, event, entry.offset)
        case BatchPause() | BatchResume() | BatchChange():
            return _control(batch, event, entry.offset)
        case BatchValidated():
            return _validated(batch, chunks, event, entry.offset)
        case BatchRejected():
            return _rejected(batch, event, entry.offset)
        case BatchAssembled():
            return _assembled(batch, event, entry.offset)
        case BatchWindowEnded():
            return _window_ended(batch, chunks, event, entry.offset)
        case _:
            assert_never(event)


# Which transition an event makes, by state.


def _create(create: BatchCreate, entry: Entry) -> Folded:
    terms = terms_of(create)
    start = Validating(
        request=request_of(create),
        terms=terms,
        watermark=entry.offset,
        commands=(create.command_id,),
    )
    # By the log's clock: a create that is emitted again weeks later must not start lines.
    if entry.logged_at_ms >= terms.expires_at_ms:
        return _end(start, entry.offset, BatchStatus.EXPIRED, entry.logged_at_ms)
    file = usable_input(create)
    if isinstance(file, BatchError):
        return _end(start, entry.offset, BatchStatus.FAILED, create.at_ms, errors=(file,))
    task = SendTask(intake_task(start.request, terms, file))
    return Folded(start, effects=(task, PublishSnapshot(snapshot_of(start))))


def _cancel(batch: Batch | None, chunks: Chunks, cancel: BatchCancel, offset: int) -> Folded:
    if batch is None or not _is_new(batch, cancel):
        return Folded(batch)
    match batch:
        case Validating():
            return _cancel_validating(batch, cancel, offset)
        case InProgress():
            return _cancel_lines(batch, chunks, cancel, offset)
        case Finalizing():
            return _cancel_assembly(batch, cancel, offset)
        case Cancelling() | Ended():
            return Folded(batch)
        case _:
            assert_never(batch)


def _control(batch: Batch | None, command: Control, offset: int) -> Folded:
    if batch is None or isinstance(batch, Cancelling | Ended) or not _is_new(batch, command):
        return Folded(batch)
    steered, effects = steer(batch, command, offset)
    return Folded(steered, effects=effects)


def _validated(batch: Batch | None, chunks: Chunks, event: BatchValidated, offset: int) -> Folded:
    match batch:
        case Validating() if event.task_id == intake_id(batch.request):
            return _start_lines(batch, chunks, event, offset)
        case _:
            return Folded(batch)


def _rejected(batch: Batch | None, event: BatchRejected, offset: int) -> Folded:
    match batch:
        case Validating() if event.task_id == intake_id(batch.request):
            return _end(batch, offset, BatchStatus.FAILED, event.at_ms, errors=event.errors)
        case _:
            return Folded(batch)


def _assembled(batch: Batch | None, event: BatchAssembled, offset: int) -> Folded:
    match batch:
        case Finalizing() if event.task_id == assemble_id(batch.request):
            expired = batch.reason is AssembleReason.EXPIRED
            status = BatchStatus.EXPIRED if expired else BatchStatus.COMPLETED
            return _hand_over(batch, batch.work, event, status, offset)
        case Cancelling() if event.task_id == assemble_id(batch.request):
            return _hand_over(batch, batch.work, event, BatchStatus.CANCELLED, offset)
        case _:
            return Folded(batch)


def _window_ended(
    batch: Batch | None, chunks: Chunks, event: BatchWindowEnded, offset: int
) -> Folded:
    if batch is None or event.at_ms < batch.terms.expires_at_ms:
        return Folded(batch)
    match batch:
        case Validating():
            return _end(batch, offset, BatchStatus.EXPIRED, event.at_ms)
        case InProgress():
            return _finalize(batch, chunks, AssembleReason.EXPIRED, event.at_ms, offset)
        case Finalizing():
            return _expire_assembly(batch, offset)
        case Cancelling() | Ended():
            return Folded(batch)
        case _:
            assert_never(batch)


def _segment(batch: Batch | None, chunks: Chunks, event: SegmentWritten, offset: int) -> Folded:
    match batch:
        case InProgress():
            return _collect_lines(batch, chunks, event, offset)
        case _:
            return Folded(batch)


# The transitions. Each takes the one state that it leaves.


def _start_lines(batch: Validating, chunks: Chunks, event: BatchValidated, offset: int) -> Folded:
    work = Work(
        plan=event.plan,
        total=event.total,
        models=event.models,
        estimated_input_tokens=event.estimated_input_tokens,
        prompts=event.prompts,
        unused_variables=event.unused_variables,
        in_progress_at_ms=event_time(event.at_ms, batch.request),
    )
    # Chunk rows may have outlived the batch's own row in a crash.
    counts = sum_of(chunks.values())
    started = InProgress(
        request=batch.request,
        terms=batch.terms,
        watermark=offset,
        commands=batch.commands,
        work=work,
        counts=counts,
        accepted_prefix=accepted_prefix(chunks),
        paused_at_ms=batch.paused_at_ms,
    )
    if _all_in(started, chunks, offset):
        return _finalize(started, chunks, AssembleReason.COMPLETED, event.at_ms, offset)
    return Folded(started, effects=(OpenLines(started), PublishSnapshot(snapshot_of(started))))


def _collect_lines(batch: InProgress, chunks: Chunks, event: SegmentWritten, offset: int) -> Folded:
    collected = collect(batch, chunks, event, offset)
    ledgers = {**chunks, **collected.chunks}
    after = replace(
        batch,
        watermark=max(batch.watermark, offset),
        counts=batch.counts.plus(collected.gained),
        accepted_prefix=accepted_prefix(ledgers, batch.accepted_prefix),
    )
    if offset > batch.watermark and _all_in(after, ledgers, offset):
        ended = _finalize(after, ledgers, AssembleReason.COMPLETED, event.at_ms, offset)
        return Folded(ended.batch, collected.chunks, collected.bill + ended.effects)
    return Folded(after, collected.chunks, collected.bill + collected.settled)


def _finalize(
    batch: InProgress, chunks: Chunks, reason: AssembleReason, at_ms: int, offset: int
) -> Folded:
    frozen = Finalizing(
        request=batch.request,
        terms=batch.terms,
        watermark=offset,
        commands=batch.commands,
        work=batch.work,
        frozen=batch.counts,
        accepted_prefix=batch.accepted_prefix,
        reason=reason,
        finalizing_at_ms=event_time(at_ms, batch.request),
    )
    return Folded(frozen, effects=_frozen_effects(frozen, chunks))


def _expire_assembly(batch: Finalizing, offset: int) -> Folded:
    """All lines may be in, but what callers are promised is files within the window."""
    return Folded(replace(batch, watermark=offset, reason=AssembleReason.EXPIRED))


def _cancel_validating(batch: Validating, cancel: BatchCancel, offset: int) -> Folded:
    cancelling = _cancelling(batch, cancel, offset, None, Counts(), AssembleReason.CANCELLED, None)
    return Folded(cancelling, effects=_frozen_effects(cancelling, {}))


def _cancel_lines(batch: InProgress, chunks: Chunks, cancel: BatchCancel, offset: int) -> Folded:
    cancelling = _cancelling(
        batch, cancel, offset, batch.work, batch.counts, AssembleReason.CANCELLED, None
    )
    return Folded(cancelling, effects=_frozen_effects(cancelling, chunks))


def _cancel_assembly(batch: Finalizing, cancel: BatchCancel, offset: int) -> Folded:
    """The lines are frozen already: the assembly that runs is the right one."""
    cancelling = _cancelling(
        batch, cancel, offset, batch.work, batch.frozen, batch.reason, batch.finalizing_at_ms
    )
    return Folded(cancelling, effects=(PublishSnapshot(snapshot_of(cancelling)),))


def _hand_over(
    batch: Finalizing | Cancelling,
    work: Work | None,
    event: BatchAssembled,
    status: BatchStatus,
    offset: int,
) -> Folded:
    total = work.total if work else 0
    output, error = output_files(batch.request, event)
    completed = min(event.output.lines, batch.frozen.completed) if output and event.output else 0
    ended = Ended(
        request=batch.request,
        terms=batch.terms,
        watermark=offset,
        commands=batch.commands,
        status=status,
        work=work,
        final=replace(batch.frozen, completed=completed, failed=total - completed),
        finalizing_at_ms=batch.finalizing_at_ms,
        cancelling_at_ms=batch.cancelling_at_ms if isinstance(batch, Cancelling) else None,
        ended_at_ms=event_time(event.at_ms, batch.request),
        output_file_id=output.file_id if output else None,
        error_file_id=error.file_id if error else None,
        output=output.object if output else None,
        error=error.object if error else None,
    )
    files = tuple(RecordFile(file) for file in (output, error) if file is not None)
    return Folded(ended, effects=(*files, PublishSnapshot(snapshot_of(ended))))


def _end(
    batch: Validating,
    offset: int,
    status: BatchStatus,
    at_ms: int,
    *,
    errors: tuple[BatchError, ...] = (),
) -> Folded:
    ended = Ended(
        request=batch.request,
        terms=batch.terms,
        watermark=offset,
        commands=batch.commands,
        status=status,
        ended_at_ms=event_time(at_ms, batch.request),
        errors=errors,
    )
    return Folded(ended, effects=(PublishSnapshot(snapshot_of(ended)),))


# What the transitions share.


def _cancelling(
    batch: Validating | InProgress | Finalizing,
    cancel: BatchCancel,
    offset: int,
    work: Work | None,
    frozen: Counts,
    reason: AssembleReason,
    finalizing_at_ms: int | None,
) -> Cancelling:
    return Cancelling(
        request=batch.request,
        terms=batch.terms,
        watermark=offset,
        commands=remember(batch.commands, cancel.command_id),
        work=work,
        frozen=frozen,
        accepted_prefix=prefix_of(batch),
        reason=reason,
        finalizing_at_ms=finalizing_at_ms,
        cancelling_at_ms=event_time(cancel.at_ms, batch.request),
    )


def _frozen_effects(batch: Finalizing | Cancelling, chunks: Chunks) -> tuple[Effect, ...]:
    task = SendTask(assemble_task(batch, chunks))
    return (task, PublishSnapshot(snapshot_of(batch)), CloseLines(batch.request.batch_id))


def _all_in(batch: InProgress, chunks: Chunks, offset: int) -> bool:
    if batch.counts.accepted < batch.work.total:
        return False
    # After a crash the chunks may be ahead of the batch. It finalizes at the event at which it
    # did the first time, so that the timestamp stays what callers have seen.
    return all(ledger.watermark <= offset for ledger in chunks.values())


def _is_new(batch: Batch, command: BatchCancel | Control) -> bool:
    # A command to another tenant's batch can only come from a direct producer.
    return command.command_id not in batch.commands and command.tenant == batch.request.tenant
