"""A batch's log for tests: short makers of events, and a fold that keeps what it was told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from schemas.records import (
    AssembledFile,
    AssembleTask,
    BatchAssembled,
    BatchCancel,
    BatchChange,
    BatchCreate,
    BatchPause,
    BatchResume,
    BatchRow,
    BatchSnapshot,
    BatchValidated,
    BatchWindowEnded,
    ChunkRow,
    CollectedLine,
    IntakeTask,
    ObjectRef,
    OutcomeKind,
    PinnedPrompt,
    SegmentWritten,
    Usage,
    UsageRecorded,
)
from streams.domain.batch.effects import Effect, PublishSnapshot, RecordFile, RecordUsage, SendTask
from streams.domain.batch.machine import Entry, Event, fold
from streams.domain.batch.row import from_row, to_row
from streams.domain.batch.state import Batch
from streams.domain.ledger import Ledger
from streams.domain.ledger import from_row as ledger_from_row
from streams.domain.ledger import to_row as ledger_to_row

BATCH = "batch_0001"
TENANT = "tenant-a"
CREATED_MS = 1_700_000_000_000
WINDOW_S = 3600
ENDS_MS = CREATED_MS + WINDOW_S * 1000
ENDPOINT = "/v1/chat/completions"


def create(
    batch_id: str = BATCH,
    *,
    tenant: str = TENANT,
    at_ms: int = CREATED_MS,
    window_s: int = WINDOW_S,
    known: bool = True,
    purpose: str = "batch",
    input_key: str = "files/tenant-a/file-1",
    input_bytes: int = 1000,
    priority: int = 0,
) -> BatchCreate:
    """A create command."""
    return BatchCreate(
        command_id=f"cmd_create_{batch_id}",
        batch_id=batch_id,
        tenant=tenant,
        at_ms=at_ms,
        endpoint=ENDPOINT,
        input_file_id="file-1",
        input=ObjectRef(key=input_key, size_bytes=input_bytes) if known else None,
        input_purpose=purpose if known else None,
        completion_window="1h",
        window_s=window_s,
        metadata={"for": "tests"},
        request_hash="0" * 64,
        priority=priority,
    )


def cancel(
    batch_id: str = BATCH,
    *,
    command_id: str = "cmd_cancel",
    tenant: str = TENANT,
    at_ms: int = CREATED_MS + 50_000,
) -> BatchCancel:
    """A cancel command."""
    return BatchCancel(command_id=command_id, batch_id=batch_id, tenant=tenant, at_ms=at_ms)


def pause(
    batch_id: str = BATCH,
    *,
    command_id: str = "cmd_pause",
    tenant: str = TENANT,
    at_ms: int = CREATED_MS + 20_000,
) -> BatchPause:
    """A pause command."""
    return BatchPause(command_id=command_id, batch_id=batch_id, tenant=tenant, at_ms=at_ms)


def resume(
    batch_id: str = BATCH,
    *,
    command_id: str = "cmd_resume",
    tenant: str = TENANT,
    at_ms: int = CREATED_MS + 30_000,
) -> BatchResume:
    """A resume command."""
    return BatchResume(command_id=command_id, batch_id=batch_id, tenant=tenant, at_ms=at_ms)


def change(
    priority: int | None = None,
    expires_at_ms: int | None = None,
    *,
    batch_id: str = BATCH,
    command_id: str = "cmd_change",
    tenant: str = TENANT,
    at_ms: int = CREATED_MS + 40_000,
) -> BatchChange:
    """A change of priority, of the window's end, or of both."""
    return BatchChange(
        command_id=command_id,
        batch_id=batch_id,
        tenant=tenant,
        at_ms=at_ms,
        priority=priority,
        expires_at_ms=expires_at_ms,
    )


def validated(
    total: int,
    batch_id: str = BATCH,
    *,
    models: tuple[str, ...] = ("m",),
    plan: ObjectRef | None = None,
    at_ms: int = CREATED_MS + 1000,
    prompts: tuple[PinnedPrompt, ...] = (),
    unused_variables: int = 0,
) -> BatchValidated:
    """The input file is good."""
    return BatchValidated(
        task_id=f"{batch_id}:intake",
        batch_id=batch_id,
        tenant=TENANT,
        at_ms=at_ms,
        plan=plan or ObjectRef(key=f"batches/{batch_id}/plan/1", size_bytes=16 + 16 * total),
        total=total,
        models=models,
        estimated_input_tokens=10 * total,
        prompts=prompts,
        unused_variables=unused_variables,
    )


def pinned(*versions: tuple[str, int, int]) -> tuple[PinnedPrompt, ...]:
    """Pins of these (slug, version, lines)."""
    return tuple(PinnedPrompt(slug=s, version=v, lines=n) for s, v, n in versions)


def window_ended(batch_id: str = BATCH, *, at_ms: int = ENDS_MS) -> BatchWindowEnded:
    """The window is over."""
    return BatchWindowEnded(batch_id=batch_id, tenant=TENANT, at_ms=at_ms)


def outcome(
    line: int,
    kind: OutcomeKind = OutcomeKind.COMPLETED,
    *,
    attempt: int = 1,
    done_offset: int = 0,
    retry_at_ms: int = 0,
    model: int = 0,
) -> CollectedLine:
    """What became of a line; its usage follows from its number, so that bills can be compared."""
    usage = Usage(input_tokens=line + 1, output_tokens=2) if kind is not OutcomeKind.RETRY else None
    return CollectedLine(
        line=line,
        done_offset=done_offset,
        kind=kind,
        attempt=attempt,
        retry_at_ms=retry_at_ms,
        model=model,
        usage=usage or Usage(),
    )


def segment(
    outcomes: Iterable[CollectedLine],
    batch_id: str = BATCH,
    *,
    at_ms: int = CREATED_MS + 2000,
    models: tuple[str, ...] = ("m",),
) -> SegmentWritten:
    """A segment of these outcomes."""
    return SegmentWritten(
        segment_id="seg",
        batch_id=batch_id,
        tenant=TENANT,
        at_ms=at_ms,
        partition=0,
        models=models,
        lines=tuple(outcomes),
    )


def assembled(
    output: int,
    error: int,
    batch_id: str = BATCH,
    *,
    attempt: int = 1,
    lost: int = 0,
    at_ms: int = CREATED_MS + 60_000,
) -> BatchAssembled:
    """The files are written, with so many lines each."""
    return BatchAssembled(
        task_id=f"{batch_id}:assemble",
        batch_id=batch_id,
        tenant=TENANT,
        at_ms=at_ms,
        output=_file(batch_id, f"file-out-{attempt}", output),
        error=_file(batch_id, f"file-err-{attempt}", error),
        lost=lost,
    )


def _file(batch_id: str, file_id: str, lines: int) -> AssembledFile | None:
    if not lines:
        return None
    ref = ObjectRef(key=f"batches/{batch_id}/assembled/{file_id}", size_bytes=lines)
    return AssembledFile(file_id=file_id, object=ref, lines=lines)


def entries(events: Sequence[Event], first: int = 100) -> list[Entry]:
    """The events as a log has them. Offsets have gaps, as a partition of many batches does."""
    return [
        Entry(event, first + 3 * number, getattr(event, "at_ms", CREATED_MS) + 5)
        for number, event in enumerate(events)
    ]


@dataclass
class Controller:
    """A controller of one batch: state in memory, rows as the tables would hold them."""

    batch: Batch | None = None
    chunks: dict[int, Ledger] = field(default_factory=dict)
    row: BatchRow | None = None
    chunk_rows: dict[int, ChunkRow] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)

    def feed(
        self, log: Iterable[Entry], *, write_batch: bool = True, write_chunks: bool = True
    ) -> Controller:
        """Folds entries; rows may be left unwritten, as a crash would."""
        for entry in log:
            folded = fold(self.batch, self.chunks, entry)
            self.batch = folded.batch
            self.chunks |= folded.chunks
            self.effects += folded.effects
            if write_chunks:
                for chunk, ledger in folded.chunks.items():
                    self.chunk_rows[chunk] = ledger_to_row(BATCH, chunk, ledger)
            if write_batch and self.batch is not None:
                self.row = to_row(self.batch)
        return self

    def restart(self) -> Controller:
        """Another controller that has only the rows; effects go on being collected."""
        chunks = {number: ledger_from_row(row) for number, row in self.chunk_rows.items()}
        batch = from_row(self.row, chunks) if self.row is not None else None
        return Controller(batch, chunks, self.row, dict(self.chunk_rows), self.effects)

    @property
    def tasks(self) -> list[IntakeTask | AssembleTask]:
        """Tasks by id, the last one of each."""
        found = {e.task.task_id: e.task for e in self.effects if isinstance(e, SendTask)}
        return list(found.values())

    @property
    def snapshots(self) -> list[BatchSnapshot]:
        """Snapshots as a reader keeps them: none whose revision is lower than the one before."""
        kept: list[BatchSnapshot] = []
        for effect in self.effects:
            if isinstance(effect, PublishSnapshot) and (
                not kept or effect.snapshot.revision >= kept[-1].revision
            ):
                kept.append(effect.snapshot)
        return kept

    @property
    def file_names(self) -> list[str]:
        """Names of the files that callers see."""
        found = {e.file.file_id: e.file for e in self.effects if isinstance(e, RecordFile)}
        return [file.filename for file in found.values()]

    @property
    def bill(self) -> dict[int, tuple[bool, Usage]]:
        """What each line cost, as the meter keeps it. Raises if two records disagree."""
        lines: dict[int, tuple[bool, Usage]] = {}
        for usage in self.usage:
            for line in usage.lines:
                cost = (line.completed, line.usage)
                assert lines.setdefault(line.line, cost) == cost
        return lines

    @property
    def usage(self) -> list[UsageRecorded]:
        """Every usage record, repeats included."""
        return [e.usage for e in self.effects if isinstance(e, RecordUsage)]
