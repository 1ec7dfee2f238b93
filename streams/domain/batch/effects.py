"""What a fold asks the world to do. Every effect is idempotent by its key, so replays are harmless.

effect           carried out by             key
SendTask         file.task                  task_id
RecordUsage      usage.recorded             (batch, line)
RecordFile       file                       file_id
PublishSnapshot  batch.status               (batch, revision)
OpenLines, SteerLines, SettleLines, CloseLines          the dispatcher in this process
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.records import (
    AssembleTask,
    BatchSnapshot,
    FileRecord,
    IntakeTask,
    OpenRetry,
    UsageRecorded,
)
from streams.domain.batch.state import InProgress, Terms


@dataclass(frozen=True, slots=True)
class SendTask:
    """Work for the file-workers."""

    task: IntakeTask | AssembleTask


@dataclass(frozen=True, slots=True)
class RecordUsage:
    """The bill of newly accepted lines."""

    usage: UsageRecorded


@dataclass(frozen=True, slots=True)
class RecordFile:
    """An output or error file that callers may now see."""

    file: FileRecord


@dataclass(frozen=True, slots=True)
class PublishSnapshot:
    """The status changed: callers are to see it at once."""

    snapshot: BatchSnapshot


@dataclass(frozen=True, slots=True)
class OpenLines:
    """The batch's lines may be released from now on."""

    batch: InProgress


@dataclass(frozen=True, slots=True)
class SteerLines:
    """The batch's lines go on under these terms, or wait: it was paused, resumed or changed."""

    batch_id: str
    terms: Terms
    paused: bool


@dataclass(frozen=True, slots=True)
class SettleLines:
    """These lines are in; those wait for another attempt."""

    batch_id: str
    accepted: tuple[int, ...]
    retries: tuple[OpenRetry, ...]


@dataclass(frozen=True, slots=True)
class CloseLines:
    """No more lines of the batch are to be released."""

    batch_id: str


Effect = (
    SendTask
    | RecordUsage
    | RecordFile
    | PublishSnapshot
    | OpenLines
    | SteerLines
    | SettleLines
    | CloseLines
)
"""Everything a fold can ask for."""
