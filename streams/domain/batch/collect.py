"""Folding outcomes into the chunks of a running batch, and the bill that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.records import (
    CollectedLine,
    LineUsage,
    OpenRetry,
    OutcomeKind,
    SegmentWritten,
    UsageRecorded,
)
from streams.domain.batch.effects import Effect, RecordUsage, SettleLines
from streams.domain.batch.state import InProgress
from streams.domain.chunk import chunk_of
from streams.domain.clock import day_of
from streams.domain.ledger import Counts, Ledger, accept


@dataclass(frozen=True, slots=True)
class Collected:
    """What one segment's outcomes changed.

    chunks: the ledgers that folded the event. gained: the sums of the newly accepted lines.
    bill: what they cost. settled: what the dispatcher is to know.
    """

    chunks: Mapping[int, Ledger]
    gained: Counts
    bill: tuple[Effect, ...]
    settled: tuple[Effect, ...]


def collect(
    batch: InProgress, chunks: Mapping[int, Ledger], event: SegmentWritten, offset: int
) -> Collected:
    """Accepts the event's outcomes, each chunk by its own watermark."""
    # Of a batch with one model the usage by model is its whole usage: no line is looked at for it.
    models = event.models if len(batch.work.models) > 1 else ()
    day = day_of(event.at_ms)
    later_day = day if day > day_of(batch.request.created_at_ms) else None
    changed: dict[int, Ledger] = {}
    lines: list[CollectedLine] = []
    retries: list[OpenRetry] = []
    gained = Counts()
    for chunk, outcomes in _by_chunk(event, batch.work.total).items():
        before = chunks.get(chunk) or Ledger()
        accepted = accept(before, outcomes, offset, models, later_day)
        if accepted.ledger is not before:
            changed[chunk] = accepted.ledger
        lines += accepted.lines
        gained = gained.plus(accepted.gained)
        retries += accepted.retries
    bill = (RecordUsage(_usage(batch, event, lines, offset)),) if lines else ()
    settled: tuple[Effect, ...] = ()
    if lines or retries:
        numbers = tuple([line.line for line in lines])
        settled = (SettleLines(batch.request.batch_id, numbers, tuple(retries)),)
    return Collected(changed, gained, bill, settled)


def _by_chunk(event: SegmentWritten, total: int) -> dict[int, list[CollectedLine]]:
    found: dict[int, list[CollectedLine]] = {}
    for line in event.lines:
        # A line that the plan doesn't have could never be counted against the total.
        if 0 <= line.line < total:
            found.setdefault(chunk_of(line.line), []).append(line)
    return found


def _usage(
    batch: InProgress, event: SegmentWritten, lines: list[CollectedLine], offset: int
) -> UsageRecorded:
    request = batch.request
    return UsageRecorded(
        usage_id=f"{request.batch_id}:{offset}",
        batch_id=request.batch_id,
        tenant=request.tenant,
        at_ms=event.at_ms,
        endpoint=request.endpoint,
        completion_window=request.completion_window,
        batch_created_at_ms=request.created_at_ms,
        models=event.models,
        lines=tuple(
            [
                LineUsage(
                    line=line.line,
                    model=line.model,
                    completed=line.kind is OutcomeKind.COMPLETED,
                    usage=line.usage,
                    usage_flag=line.usage_flag,
                )
                for line in lines
            ]
        ),
    )
