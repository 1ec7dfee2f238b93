"""Lines on their way: released, answered, packed, counted."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from schemas.records.common import ClaimCheck, ObjectRef, Usage


class ReadyLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line to run."""

    line: int
    attempt: int
    raw: bytes | None = None
    claim: ClaimCheck | None = None
    pin: int = 0


class ReadyLines(msgspec.Struct, frozen=True, kw_only=True):
    """A slice: lines of one batch for one upstream pool, released to a worker that has credits."""

    batch_id: str
    tenant: str
    at_ms: int
    endpoint: str
    pool: str
    deadline_ms: int
    created_at_ms: int
    tail: bool = False
    pins: ClaimCheck | None = None
    lines: tuple[ReadyLine, ...]


class OutcomeKind(StrEnum):
    """How one attempt at a line ended."""

    UNKNOWN = "unknown"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRY = "retry"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt at one line ended."""

    line: int
    attempt: int
    kind: OutcomeKind
    rendered: bytes | None = None
    claim: ClaimCheck | None = None
    retry_at_ms: int = 0
    reason: str = ""
    status_code: int = 0
    model: str = ""
    usage: Usage = Usage()
    usage_flag: str = ""
    latency_ms: int = 0


class DoneLines(msgspec.Struct, frozen=True, kw_only=True):
    """Outcomes of one batch that finished within about 20 ms of each other on one worker."""

    batch_id: str
    tenant: str
    at_ms: int
    worker: str
    tail: bool = False
    outcomes: tuple[Outcome, ...]


class CollectedLine(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one attempt at one line."""

    line: int
    done_offset: int
    kind: OutcomeKind
    attempt: int
    retry_at_ms: int = 0
    model: int = -1
    usage: Usage = Usage()
    usage_flag: str = ""


class SegmentWritten(msgspec.Struct, frozen=True, kw_only=True):
    """Event: the collector packed outcomes of a batch into a segment object."""

    segment_id: str
    batch_id: str
    tenant: str
    at_ms: int
    segment: ObjectRef | None = None
    partition: int
    models: tuple[str, ...]
    lines: tuple[CollectedLine, ...]


class LineUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Usage of one newly accepted line."""

    line: int
    model: int
    completed: bool
    usage: Usage = Usage()
    usage_flag: str = ""


class UsageRecorded(msgspec.Struct, frozen=True, kw_only=True):
    """Usage of lines that the controller newly accepted; idempotent by (batch, line)."""

    usage_id: str
    batch_id: str
    tenant: str
    at_ms: int
    endpoint: str
    completion_window: str
    batch_created_at_ms: int
    models: tuple[str, ...]
    lines: tuple[LineUsage, ...]
