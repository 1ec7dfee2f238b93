"""The typed form of every record on a topic and of every table value.

A record's fields, their units and meaning are documented once, in its `.avsc` file under
`schemas/avro/<Record>/`; the tests hold the two against each other. Times are Unix
milliseconds (`_ms`), sizes bytes, line numbers 0-based, unless a field's doc says otherwise.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ObjectRef(msgspec.Struct, frozen=True, kw_only=True):
    """A whole object in the object store."""

    key: str
    size_bytes: int
    sha256: str | None = None


class BatchCreate(msgspec.Struct, frozen=True, kw_only=True):
    """Command: create a batch. Written by gateways, re-emitted onto batch.event."""

    command_id: str
    batch_id: str
    tenant: str
    at_ms: int
    endpoint: str
    input_file_id: str
    input: ObjectRef | None = None
    input_purpose: str | None = None
    completion_window: str
    window_s: int
    metadata: dict[str, str]
    output_expires_after_s: int | None = None
    request_hash: str
    priority: int = 0


class BatchCancel(msgspec.Struct, frozen=True, kw_only=True):
    """Command: cancel a batch."""

    command_id: str
    batch_id: str
    tenant: str
    at_ms: int


class BatchPause(msgspec.Struct, frozen=True, kw_only=True):
    """Command: release no new line of a batch until it is resumed."""

    command_id: str
    batch_id: str
    tenant: str
    at_ms: int


class BatchResume(msgspec.Struct, frozen=True, kw_only=True):
    """Command: go on with a paused batch."""

    command_id: str
    batch_id: str
    tenant: str
    at_ms: int


class BatchChange(msgspec.Struct, frozen=True, kw_only=True):
    """Command: change a batch that has not ended; what is None stays as it is."""

    command_id: str
    batch_id: str
    tenant: str
    at_ms: int
    priority: int | None = None
    expires_at_ms: int | None = None


class PinnedPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt version that lines of a batch use, fixed when the batch was validated."""

    slug: str
    version: int
    lines: int


class BatchValidated(msgspec.Struct, frozen=True, kw_only=True):
    """Event: the file-worker found the input file good and wrote its plan."""

    task_id: str
    batch_id: str
    tenant: str
    at_ms: int
    plan: ObjectRef
    total: int
    models: tuple[str, ...]
    estimated_input_tokens: int
    prompts: tuple[PinnedPrompt, ...] = ()
    unused_variables: int = 0


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """One validation error, as shown in the batch's errors.data[]."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchRejected(msgspec.Struct, frozen=True, kw_only=True):
    """Event: the input file is bad; the batch fails once with all these errors."""

    task_id: str
    batch_id: str
    tenant: str
    at_ms: int
    errors: tuple[BatchError, ...]


class OutcomeKind(StrEnum):
    """How one attempt at a line ended."""

    UNKNOWN = "unknown"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRY = "retry"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts, as the upstream reported them after bounds were checked."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class CollectedLine(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one attempt at one line."""

    line: int
    done_offset: int
    kind: OutcomeKind
    attempt: int
    retry_at_ms: int = 0
    model: int = -1
    usage: Usage = Usage()


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


class AssembledFile(msgspec.Struct, frozen=True, kw_only=True):
    """An output or error file, as assembly wrote it."""

    file_id: str
    object: ObjectRef
    lines: int


class BatchAssembled(msgspec.Struct, frozen=True, kw_only=True):
    """Event: output and error files are written; the first folded wins."""

    task_id: str
    batch_id: str
    tenant: str
    at_ms: int
    output: AssembledFile | None = None
    error: AssembledFile | None = None
    manifest: ObjectRef | None = None
    lost: int = 0


class BatchWindowEnded(msgspec.Struct, frozen=True, kw_only=True):
    """Event: the completion window is over; written by the controller's clock."""

    batch_id: str
    tenant: str
    at_ms: int


class IntakeTask(msgspec.Struct, frozen=True, kw_only=True):
    """Task: validate an input file and write its plan."""

    task_id: str
    batch_id: str
    tenant: str
    at_ms: int
    endpoint: str
    input: ObjectRef
    deadline_ms: int


class AssembleReason(StrEnum):
    """Why the set of lines was frozen."""

    UNKNOWN = "unknown"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class AssembleTask(msgspec.Struct, frozen=True, kw_only=True):
    """Task: merge a batch's segments into its output and error files; its lines are frozen."""

    task_id: str
    batch_id: str
    tenant: str
    at_ms: int
    reason: AssembleReason
    input: ObjectRef | None = None
    plan: ObjectRef | None = None
    total: int
    accepted: bytes
    completed: int
    failed: int


class ClaimCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A byte range of a stored object, in place of bytes too large to travel in Kafka."""

    key: str
    offset: int
    length: int
    sha256: str | None = None


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


class LineUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Usage of one newly accepted line."""

    line: int
    model: int
    completed: bool
    usage: Usage = Usage()


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


class BatchStatus(StrEnum):
    """The batch's status, as the API shows it."""

    UNKNOWN = "unknown"
    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class BatchSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole batch as the API shows it."""

    batch_id: str
    tenant: str
    revision: int
    status: BatchStatus
    created_at_ms: int
    expires_at_ms: int
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str]
    output_expires_after_s: int | None = None
    request_hash: str
    in_progress_at_ms: int | None = None
    finalizing_at_ms: int | None = None
    completed_at_ms: int | None = None
    failed_at_ms: int | None = None
    expired_at_ms: int | None = None
    cancelling_at_ms: int | None = None
    cancelled_at_ms: int | None = None
    model: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: tuple[BatchError, ...]
    total: int
    completed: int
    failed: int
    usage: Usage = Usage()
    prompts: tuple[PinnedPrompt, ...] = ()
    unused_variables: int = 0
    priority: int = 0
    paused_at_ms: int | None = None
    commands: tuple[str, ...] = ()


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A file as the API shows it, or its end; a tombstone follows when its bytes are gone."""

    file_id: str
    tenant: str
    object: ObjectRef
    filename: str
    purpose: str
    created_at_ms: int
    expires_at_ms: int | None = None
    batch_id: str | None = None
    deleted_at_ms: int | None = None


class ApiKeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An API key. The secret itself is shown once and never stored."""

    key_id: str
    tenant: str
    name: str
    secret_sha256: str
    hint: str
    created_at_ms: int
    revoked_at_ms: int | None = None


class PromptVersionRef(msgspec.Struct, frozen=True, kw_only=True):
    """A version in a prompt's list: its number, counted from 1, and the record of its text."""

    number: int
    version_id: str
    created_at_ms: int
    size_bytes: int
    request_hash: str


class PromptHead(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt as it is from one revision on. Of several with one revision the first counts."""

    tenant: str
    slug: str
    revision: int
    write_id: str
    prompt_id: str
    request_hash: str
    description: str | None = None
    created_at_ms: int
    updated_at_ms: int
    published: int | None = None
    latest: int
    versions: tuple[PromptVersionRef, ...]
    deleted_at_ms: int | None = None


class PromptVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The text of one version of a prompt; never changes. In use once a PromptHead lists it."""

    tenant: str
    slug: str
    version_id: str
    messages: bytes
    model_config: bytes


class PartitionSeen(msgspec.Struct, frozen=True, kw_only=True):
    """How far a worker has read a line.ready partition."""

    partition: int
    next_offset: int
    committed: int


class PoolLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's load on one upstream pool."""

    pool: str
    credits: int
    held: int


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A batch-worker's load, on change (within 50 ms) and each second. Stale after 3 s."""

    worker: str
    at_ms: int
    partitions: tuple[PartitionSeen, ...]
    pools: tuple[PoolLoad, ...]
    stopping: bool = False


class PoolBacklog(msgspec.Struct, frozen=True, kw_only=True):
    """Lines that wait for one upstream pool."""

    pool: str
    lines: int
    tenants: int = 1


class ControllerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A controller's backlog, by which several controllers share the workers' credits."""

    controller: str
    at_ms: int
    pools: tuple[PoolBacklog, ...]


class RealtimeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One real-time request: a client waits for it at a gateway."""

    request_id: str
    tenant: str
    gateway: str
    reply_partition: int
    at_ms: int
    accept_by_ms: int
    deadline_ms: int
    endpoint: str
    pool: str
    model: str
    stream: bool
    body: bytes


class ReplyKind(StrEnum):
    """What a part of a real-time answer is."""

    UNKNOWN = "unknown"
    ACCEPTED = "accepted"
    HEAD = "head"
    DATA = "data"
    END = "end"
    FAILED = "failed"


class RealtimeReply(msgspec.Struct, frozen=True, kw_only=True):
    """One part of one answer."""

    request_id: str
    sequence: int
    kind: ReplyKind
    status: int = 0
    content_type: str = ""
    data: bytes = b""
    reason: str = ""
    retry_after_s: int = 0


class RealtimeReplies(msgspec.Struct, frozen=True, kw_only=True):
    """Parts of answers for one gateway that came close together at one worker."""

    gateway: str
    worker: str
    process: str
    at_ms: int
    replies: tuple[RealtimeReply, ...]


class RealtimeCancel(msgspec.Struct, frozen=True, kw_only=True):
    """A client went away, or was told an error: its upstream call is to be cut."""

    request_id: str
    gateway: str
    at_ms: int


class RealtimePoolLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A realtime-worker's load on one upstream pool."""

    pool: str
    in_flight: int
    waiting: int
    ttft_us: tuple[int, ...]
    itl_us: tuple[int, ...]


class RealtimeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A realtime-worker's load, on change (within 50 ms) and each second. Stale after 3 s."""

    worker: str
    process: str
    at_ms: int
    in_flight: int
    oldest_wait_ms: int
    pools: tuple[RealtimePoolLoad, ...]
    stopping: bool = False


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """Value of the controller's table 'batches': a batch without its lines, or its stub."""

    batch_id: str
    tenant: str
    watermark: int
    commands: tuple[str, ...]
    status: BatchStatus
    created_at_ms: int
    expires_at_ms: int
    endpoint: str
    input_file_id: str
    input: ObjectRef | None = None
    completion_window: str
    metadata: dict[str, str]
    output_expires_after_s: int | None = None
    request_hash: str
    in_progress_at_ms: int | None = None
    finalizing_at_ms: int | None = None
    completed_at_ms: int | None = None
    failed_at_ms: int | None = None
    expired_at_ms: int | None = None
    cancelling_at_ms: int | None = None
    cancelled_at_ms: int | None = None
    plan: ObjectRef | None = None
    total: int
    models: tuple[str, ...]
    estimated_input_tokens: int
    errors: tuple[BatchError, ...]
    output_file_id: str | None = None
    error_file_id: str | None = None
    reason: AssembleReason = AssembleReason.UNKNOWN
    final_completed: int
    final_failed: int
    final_usage: Usage = Usage()
    prompts: tuple[PinnedPrompt, ...] = ()
    unused_variables: int = 0
    priority: int = 0
    paused_at_ms: int | None = None


class OpenRetry(msgspec.Struct, frozen=True, kw_only=True):
    """A line that waits for its next attempt."""

    line: int
    attempt: int
    not_before_ms: int


class ChunkRow(msgspec.Struct, frozen=True, kw_only=True):
    """Value of the controller's table 'chunks': the ledger of 512 lines."""

    batch_id: str
    chunk: int
    watermark: int
    accepted: bytes
    completed: int
    failed: int
    usage: Usage = Usage()
    retries: tuple[OpenRetry, ...]


Record = (
    BatchCreate
    | BatchCancel
    | BatchPause
    | BatchResume
    | BatchChange
    | BatchValidated
    | BatchRejected
    | SegmentWritten
    | BatchAssembled
    | BatchWindowEnded
    | IntakeTask
    | AssembleTask
    | ReadyLines
    | DoneLines
    | UsageRecorded
    | BatchSnapshot
    | FileRecord
    | ApiKeyRecord
    | PromptHead
    | PromptVersion
    | WorkerLoad
    | ControllerLoad
    | RealtimeRequest
    | RealtimeReplies
    | RealtimeCancel
    | RealtimeLoad
    | BatchRow
    | ChunkRow
)
"""Every record that stands alone on a topic or in a table."""

RECORDS: tuple[type[Record], ...] = (
    BatchCreate,
    BatchCancel,
    BatchPause,
    BatchResume,
    BatchChange,
    BatchValidated,
    BatchRejected,
    SegmentWritten,
    BatchAssembled,
    BatchWindowEnded,
    IntakeTask,
    AssembleTask,
    ReadyLines,
    DoneLines,
    UsageRecorded,
    BatchSnapshot,
    FileRecord,
    ApiKeyRecord,
    PromptHead,
    PromptVersion,
    WorkerLoad,
    ControllerLoad,
    RealtimeRequest,
    RealtimeReplies,
    RealtimeCancel,
    RealtimeLoad,
    BatchRow,
    ChunkRow,
)
